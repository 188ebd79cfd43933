"""What goes in and out of an optimized network.

Names, shapes and types, and the network as a function of tensors.
"""

import inspect
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from headstart import outputs
from headstart.checkpoint.documents import as_dataclass
from headstart.engine.normalized import portable
from headstart.errors import ConfigError, FileFormatError, InputError

Axis = Literal["batch", "size", "length"]
DTYPES = ("float32", "float64", "bfloat16", "float16", "int64", "int32", "bool")
AXES: tuple[Axis, ...] = ("batch", "size", "length")
IMAGES = ("pixel_values", "bool_masked_pos")
TEXTS = ("input_ids", "attention_mask", "token_type_ids", "position_ids", "inputs_embeds")
RANKS = {"pixel_values": (4,), "bool_masked_pos": (2,), "inputs_embeds": (3, 4)}  # others: 2, 3
LONGEST = 1 << 17  # of an axis in a saved signature
TEXT_LENGTH = 128  # tokens of a text, where nobody says what texts will be like
LARGER = {"height": 32, "width": 64}  # pixels that an image of another size has more
IMAGE_SIDE = 224  # pixels, where a configuration does not say


@dataclass(frozen=True)
class Signature:
    """Names, shapes and types of inputs and outputs.

    Args:
        inputs: Names of the inputs, in order.
        shapes: Shape of each input; None where it may change.
        dtypes: Type of each input, such as "float32".
        outputs: Names of the output tensors; "feature_maps.0" is part of a tuple.
        output_class: Name of the documented output class.
    """

    inputs: tuple[str, ...]
    shapes: tuple[tuple[int | None, ...], ...]
    dtypes: tuple[str, ...]
    outputs: tuple[str, ...]
    output_class: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: object, where: object = "signature") -> "Signature":
        """The inverse of `to_dict`.

        Raises:
            FileFormatError: Values that no signature has.
        """
        read = as_dataclass(cls, values, where)
        found = cls(
            inputs=tuple(read.inputs),
            shapes=tuple(tuple(shape) for shape in read.shapes),
            dtypes=tuple(read.dtypes),
            outputs=tuple(read.outputs),
            output_class=read.output_class,
        )
        lengths = {len(found.inputs), len(found.shapes), len(found.dtypes)}
        kind: Any = getattr(outputs, found.output_class, None)
        known = isinstance(kind, type) and hasattr(kind, "to_tuple")
        names = set(inspect.signature(kind).parameters) if known else set()
        problems = {
            "inputs": not found.inputs or set(found.inputs) - {*IMAGES, *TEXTS},
            "dtypes": set(found.dtypes) - set(DTYPES) or len(lengths) > 1,
            "shapes": not all(map(_possible, found.inputs, found.shapes)),
            "output_class": not known,
            "outputs": (
                not found.outputs or {name.partition(".")[0] for name in found.outputs} - names
            ),
        }
        for key, problem in problems.items():
            if problem:
                value = getattr(found, key)
                raise FileFormatError(f"{where}: {key}={value!r:.80} is damaged or unknown")
        return found

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width of the images; None where they change, and for texts."""
        shape = dict(zip(self.inputs, self.shapes, strict=True)).get("pixel_values", (None,) * 4)
        return None if shape[2] is None or shape[3] is None else (shape[2], shape[3])

    def fits(self, tensors: Sequence[Tensor]) -> bool:
        """Whether tensors have these shapes."""
        return all(
            len(shape) == tensor.ndim
            and all(want in (None, got) for want, got in zip(shape, tensor.shape, strict=True))
            for shape, tensor in zip(self.shapes, tensors, strict=True)
        )

    def prepare(
        self, given: Mapping[str, Any], device: torch.device | str = "cpu"
    ) -> list[Tensor] | None:
        """The inputs in order, of their types and on a device; None where something is missing.

        Absent masks keep everything.
        """
        found = []
        for name, dtype in zip(self.inputs, self.dtypes, strict=True):
            value = given.get(name)
            if (
                value is None
                and name in ("attention_mask", "token_type_ids")
                and isinstance(given.get("input_ids"), Tensor)
            ):
                value = (
                    torch.ones_like(given["input_ids"])
                    if name == "attention_mask"
                    else torch.zeros_like(given["input_ids"])
                )
            if not isinstance(value, Tensor):
                return None
            found.append(value.to(device, getattr(torch, dtype)))
        return found if self.fits(found) else None

    def pack(self, tensors: Sequence[Tensor]) -> Any:
        """Output tensors under their names.

        Raises:
            FileFormatError: Another number of tensors: of a damaged folder.
        """
        if len(tensors) != len(self.outputs):
            raise FileFormatError(
                f"the engine gives {len(tensors)} outputs, the signature names {len(self.outputs)};"
                " optimize the model again"
            )
        values: dict[str, Any] = {}
        for name, tensor in zip(self.outputs, tensors, strict=True):
            stem, dot, _ = name.partition(".")
            values[stem] = (*values.get(stem, ()), tensor) if dot else tensor
        return getattr(outputs, self.output_class)(**values)


def _possible(name: str, shape: tuple[int | None, ...]) -> bool:
    """Whether an input of that name can have a shape."""
    return len(shape) in RANKS.get(name, (2, 3)) and all(
        n is None or 1 <= n <= LONGEST for n in shape
    )


class Program(nn.Module):
    """A network as a function of tensors in the order of a signature, returning a tuple of
    tensors.
    """

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.model, self.names = model, tuple(names)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Tensors in, tensors out."""
        out = self.model(**dict(zip(self.names, inputs, strict=True)), **bare(self.model))
        return tuple(flatten(out).values())


def bare(model: nn.Module) -> dict[str, bool]:
    """Arguments of a call that asks for a network's main outputs only, by name, whatever its
    configuration says.
    """
    inside = getattr(model, "model", None)  # of a network behind its preprocessing
    model = inside if isinstance(inside, nn.Module) else model
    known = inspect.signature(model.forward).parameters
    return {"return_dict": True} | {
        flag: False for flag in ("output_hidden_states", "output_attentions") if flag in known
    }


def flatten(output: Any) -> dict[str, Tensor]:
    """The tensors of an output by name; parts of a tuple as "name.0"."""
    found: dict[str, Tensor] = {}
    for name, value in output.items():
        if isinstance(value, tuple):
            found |= {f"{name}.{i}": each for i, each in enumerate(value)}
        else:
            found[name] = value
    return found


def default_dynamic(inputs: Mapping[str, Any]) -> tuple[Axis, ...]:
    """What may change from call to call unless somebody says otherwise."""
    return ("batch",) if "pixel_values" in inputs else ("batch", "length")


def check_dynamic(
    dynamic: Sequence[str] | str | bool | None, inputs: Mapping[str, Any]
) -> tuple[Axis, ...]:
    """The axes that may change.

    Raises:
        ConfigError: Not an axis of these inputs.
    """
    if dynamic is None:
        return default_dynamic(inputs)
    axes: tuple[Axis, ...] = ("batch", "size" if "pixel_values" in inputs else "length")
    if isinstance(dynamic, bool):
        return axes if dynamic else ()
    words = tuple(dynamic.replace(",", " ").split()) if isinstance(dynamic, str) else tuple(dynamic)
    if words == ("none",):
        return ()
    unknown = [word for word in words if word not in axes]
    if unknown:
        what = "images" if "pixel_values" in inputs else "texts"
        raise ConfigError(
            f"dynamic={unknown[0]!r}; the axes of {what} are {' and '.join(axes)}, and none fixes"
            " both"
        )
    return tuple(axis for axis in AXES if axis in words)


def dynamic_axes(name: str, ndim: int, dynamic: Sequence[str]) -> dict[int, str]:
    """Axis → its name, for the axes of an input that may change."""
    axes = {0: "batch"} if "batch" in dynamic else {}
    if name == "pixel_values" and "size" in dynamic:
        axes |= {2: "height", 3: "width"}
    elif name == "bool_masked_pos" and "size" in dynamic:
        axes |= {1: "patches"}
    elif name in TEXTS and "length" in dynamic:
        axes[ndim - 2 if name == "inputs_embeds" else ndim - 1] = "length"
    return axes


@torch.no_grad()
def signature_of(
    model: nn.Module, inputs: Mapping[str, Tensor], dynamic: Sequence[str]
) -> Signature:
    """The signature of a network that is called like this."""
    out = model(**inputs, **bare(model))
    shapes = []
    for name, tensor in inputs.items():
        free = dynamic_axes(name, tensor.ndim, dynamic)
        shapes.append(tuple(None if i in free else int(n) for i, n in enumerate(tensor.shape)))
    dtypes = tuple(str(tensor.dtype).removeprefix("torch.") for tensor in inputs.values())
    return Signature(tuple(inputs), tuple(shapes), dtypes, tuple(flatten(out)), type(out).__name__)


def make_example(model: Any, example: Any = None, length: int | None = None) -> dict[str, Tensor]:
    """The inputs of a call: what was given, or made up for the network.

    Args:
        model: A network.
        example: A mapping of tensors, one tensor for the main input, or None.
        length: Tokens of a text that is made up.

    Raises:
        InputError: Something else, names that the network does not take, or a text that is too long
            for it.
    """
    if example is None:
        return _made_up(model, length)
    if isinstance(example, Tensor):
        example = {model.main_input_name: example}
    try:
        found = {str(name): value for name, value in dict(example).items() if value is not None}
    except (TypeError, ValueError) as error:
        raise InputError(
            f"example is a {type(example).__name__}; expected a tensor, or a mapping of names to"
            " tensors"
        ) from error
    known = inspect.signature(model.forward).parameters
    wrong = [
        name for name, value in found.items() if name not in known or not isinstance(value, Tensor)
    ]
    if wrong or not found:
        raise InputError(
            f"example has {wrong or 'nothing'}; {type(model).__name__} takes tensors named"
            f" {', '.join(known)}"
        )
    empty = next((name for name, value in found.items() if not value.numel()), None)
    if empty is not None:
        raise InputError(
            f"example: {empty} has shape {tuple(found[empty].shape)}; expected at least one value"
        )
    return found


def _made_up(model: Any, length: int | None) -> dict[str, Tensor]:
    config, generator = model.config, torch.Generator().manual_seed(0)
    if model.main_input_name == "pixel_values":
        size = getattr(config, "image_size", IMAGE_SIDE)
        height, width = size if isinstance(size, list | tuple) else (size, size)
        return {
            "pixel_values": torch.randn(1, config.num_channels, height, width, generator=generator)
        }
    if length is not None and length > config.max_position_embeddings:
        raise InputError(
            f"a text of {length} tokens is too long for this network, which takes"
            f" {config.max_position_embeddings}"
        )
    shape: tuple[int, ...] = (1, length or min(TEXT_LENGTH, config.max_position_embeddings))
    if type(model).__name__.endswith("MultipleChoice"):
        shape = (1, 2, shape[1])
    ids = torch.randint(config.vocab_size, shape, generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def resized(inputs: Mapping[str, Tensor], dynamic: Sequence[str]) -> dict[str, Tensor]:
    """The same inputs with every axis that may change of another length, to try out a program.

    One more of a batch, half a length, larger images that are not square.
    """
    found: dict[str, Tensor] = {}
    for name, tensor in inputs.items():
        for axis, word in dynamic_axes(name, tensor.ndim, dynamic).items():
            if word in LARGER:
                more = LARGER[word]
                tensor = torch.cat([tensor, *[tensor.narrow(axis, 0, 1)] * more], axis)
            elif word == "patches":  # as many as there were for so many pixels
                before, after = (
                    x["pixel_values"].shape[2] * x["pixel_values"].shape[3] for x in (inputs, found)
                )
                tensor = tensor[:, :1].expand(-1, tensor.shape[1] * after // before)
            elif word == "batch":
                tensor = torch.cat([tensor, tensor[:1]])
            elif word == "length":
                tensor = tensor.narrow(axis, 0, max(1, tensor.shape[axis] // 2))
        found[name] = tensor.contiguous()
    return found


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps the remarks of exporters and compilers from the user."""
    loggers = [
        logging.getLogger(name)
        for name in ("torch.onnx", "torch.export", "torch._dynamo", "torch._inductor")
    ]
    levels = [each.level for each in loggers]
    try:
        for each in loggers:
            each.setLevel(logging.ERROR)
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            yield
    finally:
        for each, level in zip(loggers, levels, strict=True):
            each.setLevel(level)


def dynamic_shapes(
    signature: Signature, inputs: Mapping[str, Tensor], dynamic: Sequence[str]
) -> tuple[Any, ...]:
    """The axes that may change, as `torch.export` wants them."""
    free = (dynamic_axes(name, inputs[name].ndim, dynamic) for name in signature.inputs)
    return (tuple(dict.fromkeys(axes, torch.export.Dim.DYNAMIC) for axes in free),)


def traced_inputs(
    signature: Signature, inputs: Mapping[str, Tensor], dynamic: Sequence[str]
) -> tuple[Tensor, ...]:
    """The inputs with two in a batch that may change, and larger where sizes may.

    A batch or a map of one would be taken for a constant.
    """
    if "size" in dynamic:
        inputs = resized(inputs, ("size",))
    if "batch" in dynamic and inputs[signature.inputs[0]].shape[0] == 1:
        inputs = resized(inputs, ("batch",))
    return tuple(inputs[name] for name in signature.inputs)


def program_of(
    network: nn.Module, signature: Signature, inputs: Mapping[str, Tensor], dynamic: Sequence[str]
) -> Any:
    """The network as a program of `torch.export`."""
    return export_program(portable(network, signature.size), signature, inputs, dynamic)


def export_program(
    folded: nn.Module, signature: Signature, inputs: Mapping[str, Tensor], dynamic: Sequence[str]
) -> Any:
    """A folded network as a program of `torch.export`."""
    program = Program(folded, signature.inputs).eval()
    with quiet():
        return torch.export.export(
            program,
            traced_inputs(signature, inputs, dynamic),
            dynamic_shapes=dynamic_shapes(signature, inputs, dynamic),
        )
