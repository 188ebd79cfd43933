"""What a family says of itself: its classes, and the models that its authors published."""

import difflib
import gzip
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from typing import Any, NoReturn

from headstart.errors import ConfigError, NotFoundError, OfflineError
from headstart.package_data import EMBEDDED

FAMILIES = ("bit", "cvt", "beit", "yoso")
CONVERTED = ("google/bit-50",)  # on the Hub, converted by others from an authors' file
# File that marks a folder → "module:function" that loads such a folder: (folder, class of the
# network) → model, or None for a folder of another class.
FOLDER_LOADERS = {"headstart_optimized.json": "headstart.engine.model:load_as"}


@dataclass(frozen=True)
class Published:
    """A published model: what a table of them prints, and what loading it needs.

    Args:
        name: The authors' name, as in `from_pretrained("BiT-M-R50x1")`.
        config: Values of its configuration that are not defaults.
        url: Where the authors' file is, or None where it is gone.
        hub_id: A conversion of it on the Hub, or None.
        licence: SPDX name.
        parameters: Number of weights, exactly, with the published head.
        image_size: Height and width that the result was measured at (None for texts).
        result: The published number, with its unit.
        labels: Names of the classes: a list in `package_data/labels`, or None.
        sha256: Hash of the authors' file where one is known.
        size: Bytes of the authors' file where they are known.
    """

    name: str
    config: Mapping[str, Any] = field(default_factory=dict)
    url: str | None = None
    hub_id: str | None = None
    licence: str = "Apache-2.0"
    parameters: int = 0
    image_size: int | None = 224
    result: str = ""
    labels: str | None = None
    sha256: str | None = None
    size: int | None = None


@dataclass(frozen=True)
class Family:
    """A family of networks: where its classes are, and what it registers.

    Args:
        model_type: The word in config.json.
        exports: Public class → module, both as strings, so that nothing is imported before it is
            used.
        tasks: Task ("image-classification", …) → class of its network; "backbone", "base" and
            "keras"/"flax" variants too.
        processor: Class of its image processor or tokenizer.
        zoo: "module:table" of its `Published` models, by name.
        authors: "module:function" that reads the authors' own files: (tensors, name, config or
            None, compat=, **values) → (configuration, published name → tensor).
        recipe: "module:function" that gives the recipe of fine-tuning for a data set, or "" for the
            general one.
        writers: Ending of a file of the authors (".npz") → "module:function" that writes a network
            so: (network, path).
        lora: Last parts of the names of layers that LoRA changes where the recipe names none.
        folds: "module:function" that works out beforehand what depends on no input (see
            `headstart.engine.folds.fold`).
        classes: Classes that a user registered, by name.
    """

    model_type: str
    exports: Mapping[str, str]
    tasks: Mapping[str, str]
    processor: str
    zoo: str = ""
    authors: str = ""
    recipe: str = ""
    writers: Mapping[str, str] = field(default_factory=dict)
    lora: tuple[str, ...] = ()
    folds: str = ""
    classes: Mapping[str, Any] = field(default_factory=dict)

    def load(self, name: str) -> Any:
        """One of the family's public classes."""
        if name in self.classes:
            return self.classes[name]
        return getattr(import_module(self.exports[name]), name)

    @property
    def config(self) -> Any:
        """The configuration's class."""
        names = (*self.classes, *self.exports)
        return self.load(next(name for name in names if name.endswith("Config")))

    @property
    def reads_text(self) -> bool:
        """Whether inputs are texts, which a tokenizer prepares, rather than images."""
        return "Tokenizer" in self.processor

    @property
    def published(self) -> Mapping[str, Published]:
        """The published models, by name."""
        return locate(self.zoo) if self.zoo else {}

    @property
    def read_authors(self) -> Callable[..., Any] | None:
        """The reader of the authors' files."""
        return locate(self.authors) if self.authors else None


def load_marked(name: str | Path, cls: type) -> Any:
    """The model in a folder that a file marks as one of `FOLDER_LOADERS`, or None."""
    for marker, loader in FOLDER_LOADERS.items():
        if (Path(name) / marker).is_file():
            return locate(loader)(name, cls)
    return None


def locate(where: str) -> Any:
    """What "module:name" names."""
    module, _, name = where.partition(":")
    return getattr(import_module(module), name)


@cache
def families() -> dict[str, Family]:
    """The families by model type."""
    return {name: import_module(f"headstart.models.{name}").FAMILY for name in FAMILIES}


def register(model_type: str, cls: Any, *, task: str | None = None, exist_ok: bool = False) -> None:
    """Adds a user's class to a family, or starts a family with its configuration.

    Args:
        model_type: The word in config.json.
        cls: A configuration, a network (with `task`), an image processor or a tokenizer.
        task: The task of a network, a key of `Family.tasks`.
        exist_ok: Replace a class that is there.

    Raises:
        ConfigError: The family has such a class already, or (for a class that is not a
            configuration) no family has that model type.
    """
    name = cls.__name__
    family = families().get(model_type)
    if family is None:
        if not name.endswith("Config"):
            raise ConfigError(
                f"no family has model_type={model_type!r}; register its configuration first:"
                f" AutoConfig.register({model_type!r}, ConfigClass)"
            )
        families()[model_type] = Family(model_type, {}, {}, "", classes={name: cls})
        return
    if name.endswith("Config"):
        taken = True
    elif task is not None:
        taken = task in family.tasks
        family = replace(family, tasks={**family.tasks, task: name})
    else:
        taken, family = bool(family.processor), replace(family, processor=name)
    if taken and not exist_ok:
        raise ConfigError(
            f"{model_type} has a class for {task or name} already; pass exist_ok=True to replace it"
        )
    families()[model_type] = replace(family, classes={**family.classes, name: cls})


def refuse_saved_code(name: str, auto_class: str) -> NoReturn:
    """Refuses `register_for_auto_class`, which would save a class's code with its checkpoints.

    Raises:
        ConfigError: Always.
    """
    raise ConfigError(
        f"{name}.register_for_auto_class({auto_class!r}) is not supported: no code is saved with a"
        f" checkpoint or run from one; call {auto_class}.register where {name} is defined"
    )


def exports() -> dict[str, str]:
    """Every public class of the families → its module."""
    return {
        name: module for family in families().values() for name, module in family.exports.items()
    }


def published_models() -> dict[str, tuple[Family, Published]]:
    """Every published model by the authors' name."""
    return {
        name: (family, model)
        for family in families().values()
        for name, model in family.published.items()
    }


def find_published(name: str) -> tuple[Family, Published] | None:
    """The published model of that name (letter case, and an ending such as ".npz", do not
    matter).
    """
    if Path(name).exists() or name in EMBEDDED:
        return None
    models = published_models()
    stem = name.removesuffix(".npz").removesuffix(".pth").removesuffix(".h5")
    return models.get(stem) or next(
        (each for key, each in models.items() if key.lower() == stem.lower()), None
    )


def nearest_names(name: str) -> list[str]:
    """Published names and Hub ids that look like the one given."""
    known = list(published_models()) + [
        m.hub_id for _, m in published_models().values() if m.hub_id
    ]
    lower = {each.lower(): each for each in known}
    return [lower[each] for each in difflib.get_close_matches(name.lower(), lower, n=3, cutoff=0.5)]


@contextmanager
def suggesting(name: str | Path) -> Iterator[None]:
    """Adds the nearest known names to the error of a name that is not found."""
    try:
        yield
    except (NotFoundError, OfflineError) as error:
        near = nearest_names(str(name))
        if not near or str(name) in near or str(name) in CONVERTED:
            raise
        raise type(error)(f"{error}. Did you mean {' or '.join(near)}?") from error


def read_labels(name: str) -> dict[int, str]:
    """A list of class names by its name in `package_data/labels`: number → name."""
    data = gzip.decompress(
        files("headstart.package_data").joinpath("labels", f"{name}.txt.gz").read_bytes()
    )
    return dict(enumerate(data.decode().splitlines()))
