"""The base of the image processors: their fields, their file, and the way from images to one
batch.

Shapes: N images, H height, W width, C channels.
"""

import copy
import functools
import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, NoReturn, Self, TypeVar, dataclass_transform

import numpy as np

from headstart.checkpoint.documents import check_kind, check_names, read_object
from headstart.errors import InputError, MissingExtraError
from headstart.images.decode import (
    CHANNELS_FIRST,
    CHANNELS_LAST,
    MAX_SIDE,
    NO_CHANNELS,
    Array,
    decode,
    flatten,
    normalize,
    resize_and_crop,
    shortest_edge_size,
)


class BatchFeature(dict[str, Any]):
    """What a processor returns: a dict of batches whose keys are attributes too.

    It goes into a model as `model(**inputs)`.

    Args:
        data: The batches, by name; None is an empty dict.
        tensor_type: "np", "pt", "jax" or "tf" converts them; see `convert_to_tensors`.
        **batches: Further batches, by name.

    Example:
        >>> from headstart import BatchFeature
        >>> batch = BatchFeature({"labels": [1, 0, 2]}, tensor_type="np")
        >>> batch.labels.shape
        (3,)
    """

    def __init__(
        self, data: Mapping[str, Any] | None = None, tensor_type: str | None = None, **batches: Any
    ) -> None:
        super().__init__(data or {}, **batches)
        self.convert_to_tensors(tensor_type)

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"no {name} here; there is {', '.join(self)}") from None

    @property
    def data(self) -> dict[str, Any]:
        """Itself, as a plain dict."""
        return dict(self)

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Itself, after its torch tensors went through `tensor.to(device and/or dtype)`.

        Integers (labels) keep their dtype.
        """
        import torch

        dtype = kwargs.pop("dtype", None)
        rest = [a for a in args if not isinstance(a, torch.dtype)]
        dtype = next((a for a in args if isinstance(a, torch.dtype)), dtype)

        def move(value: Any) -> Any:
            if isinstance(value, list):
                return [move(v) for v in value]
            if not isinstance(value, torch.Tensor):
                return value
            value = value.to(*rest, **kwargs) if rest or kwargs else value
            return value.to(dtype) if dtype is not None and value.is_floating_point() else value

        self.update({key: move(value) for key, value in self.items()})
        return self

    def convert_to_tensors(self, tensor_type: str | None = None) -> Self:
        """Itself, with arrays and lists of them as tensors ("np", "pt", "jax", "tf").

        Raises:
            InputError: Images of different sizes.
        """
        if tensor_type is None:
            return self
        for key, value in self.items():
            if isinstance(value, list | tuple | np.ndarray):
                try:
                    array = np.asarray(value)
                except ValueError as error:
                    raise InputError(
                        f"{key} have different shapes and cannot be one tensor"
                    ) from error
                self[key] = to_framework(array, tensor_type)
        return self


def to_framework(batch: Array, return_tensors: str) -> Any:
    """A numpy batch as a tensor of "np", "pt", "tf" or "jax"; torch shares its memory."""
    if return_tensors == "np":
        return batch
    if return_tensors == "pt":
        import torch

        return torch.from_numpy(batch)
    if return_tensors == "tf":
        try:
            import tensorflow
        except ImportError as error:
            raise MissingExtraError("tensorflow") from error
        return tensorflow.convert_to_tensor(batch)
    if return_tensors == "jax":
        try:
            import jax.numpy
        except ImportError as error:
            raise MissingExtraError("jax", "flax") from error
        return jax.numpy.asarray(batch)
    raise InputError(f"return_tensors={return_tensors!r}: expected None, 'np', 'pt', 'tf' or 'jax'")


def size_dict(size: Any, *, square: bool = True, what: str = "size") -> dict[str, int]:
    """A size as preprocessor_config.json writes it, from a dict, an int, or (height, width).

    Args:
        size: The size.
        square: Whether an int stands for height and width, or for the shortest edge.
        what: How errors name it.
    """
    if isinstance(size, Mapping):
        size = {key: value for key, value in size.items() if value is not None}
    elif isinstance(size, Sequence) and len(size) == 2:
        size = {"height": size[0], "width": size[1]}
    elif isinstance(size, int) and not isinstance(size, bool):
        size = {"height": size, "width": size} if square else {"shortest_edge": size}
    kinds = ({"height", "width"}, {"shortest_edge"}) if what == "size" else ({"height", "width"},)
    if (
        not isinstance(size, dict)
        or set(size) not in kinds
        or not all(isinstance(v, int | np.integer) and 0 < v <= MAX_SIDE for v in size.values())
    ):
        edge = ', {"shortest_edge": int}' if what == "size" else ""
        raise InputError(
            f'{what}={size!r:.80}: expected {{"height": int, "width": int}}{edge} or an int, all'
            f" above 0 and at most {MAX_SIDE:,}"
        )
    return {key: int(value) for key, value in size.items()}


P = TypeVar("P", bound="BaseImageProcessor")
logger = logging.getLogger("headstart")
# Keys that files of other versions hold beside the fields.
KNOWN_OTHERS = frozenset(
    (
        *("image_processor_type", "feature_extractor_type", "processor_class", "use_fast"),
        *("do_convert_rgb", "do_pad", "pad_size", "data_format", "input_data_format", "device"),
        *("return_tensors", "default_to_square", "disable_grouping", "auto_map"),
        *("_valid_processor_keys", "_name_or_path", "transformers_version", "headstart_version"),
    )
)


@dataclass_transform()
def processor_class(cls: type[P]) -> type[P]:
    """Makes a dataclass that also takes other keywords and keeps them as attributes, as files of
    other versions hold them.
    """
    cls = dataclass(eq=False, repr=False)(cls)
    names = {field.name for field in fields(cls)}  # type: ignore[arg-type]
    plain_init: Callable[..., None] = cls.__init__

    @functools.wraps(plain_init)
    def init(self: P, *args: Any, **kwargs: Any) -> None:
        kwargs = {cls.aliases.get(key, key): value for key, value in kwargs.items()}
        self._others = {key: kwargs.pop(key) for key in list(kwargs) if key not in names}
        check_names(type(self), self._others, type(self).__name__, InputError)
        strange = sorted(set(self._others) - KNOWN_OTHERS)
        if strange:
            logger.warning(
                "%s has no option %s; it is kept and changes nothing",
                cls.__name__,
                ", ".join(strange),
            )
        self.__dict__.update(self._others)
        plain_init(self, *args, **kwargs)

    cls.__init__ = init  # type: ignore[method-assign, assignment]
    return cls


def _in_unit_range(image: Any) -> bool:
    """Whether an image is an array or tensor of floats from 0 to 1 that is not black."""
    if not hasattr(image, "dtype") or "float" not in str(image.dtype) or not len(image):
        return False
    return 0 <= float(image.min()) and 0 < float(image.max()) <= 1  # noqa: SIM300 - an interval


class BaseImageProcessor:
    """Base of the image processors: images of any kind in, one batch of numbers out.

    A processor is a dataclass whose fields are the documented arguments; `target` says how
    images are resized and cropped. The steps are always: decode, resize, crop from the center
    (zeros around an image that is too small), rescale, normalize.
    """

    model_input_names: ClassVar[list[str]] = ["pixel_values"]
    is_fast: ClassVar[bool] = False  # of transformers' second kind, which takes and gives tensors
    image_processor_type: ClassVar[str] = ""  # the name in preprocessor_config.json
    int_is_square: ClassVar[bool] = True  # what an int as `size` means
    aliases: ClassVar[dict[str, str]] = {}  # older names of fields in files
    defaults: ClassVar[dict[str, Any]] = {}  # what None stands for

    # Fields that every processor has, and those that some have.
    do_resize: bool
    size: Any
    resample: int
    do_rescale: bool
    rescale_factor: float
    do_normalize: bool
    image_mean: Any
    image_std: Any
    do_center_crop: bool = False
    crop_size: Any = None
    do_convert_rgb: bool = True
    _others: dict[str, Any]

    def __post_init__(self) -> None:
        """Brings the fields into the form that files hold, and checks them."""
        for field in fields(self):  # type: ignore[arg-type]
            if getattr(self, field.name) is None:
                setattr(self, field.name, self.defaults.get(field.name, field.default))
        if not isinstance(self.resample, int) or self.resample not in range(6):
            raise InputError(
                f"resample={self.resample!r:.80}: expected 0 nearest, 1 lanczos, 2 bilinear, 3"
                " bicubic, 4 box or 5 hamming"
            )
        self.resample = int(self.resample)
        check_kind(self.rescale_factor, float, "rescale_factor", InputError)
        for name in ("image_mean", "image_std"):
            value = getattr(self, name)
            value = value.tolist() if isinstance(value, np.ndarray) else value
            check_kind(value, float | list[float], name, InputError)
            several = isinstance(value, list | tuple)
            values = [float(each) for each in value] if several else float(value)
            if not np.size(values) or not np.all(np.isfinite(values)):
                raise InputError(f"{name}={value!r:.80}; expected finite numbers")
            setattr(self, name, values)
        mean, std = np.atleast_1d(self.image_mean), np.atleast_1d(self.image_std)
        if len(mean) != len(std) and 1 not in (len(mean), len(std)):
            raise InputError(
                f"image_mean has {len(mean)} values and image_std {len(std)}; give one for each"
                " channel, or one for all"
            )
        if np.any(std == 0):
            raise InputError(f"image_std={self.image_std}: a deviation of 0 cannot be divided by")

    def __setattr__(self, name: str, value: Any) -> None:
        """Sets a value; a size is brought into the form that files hold."""
        if name == "size" and value is not None:
            value = size_dict(value, square=self.int_is_square)
        elif name == "crop_size" and value is not None:
            value = size_dict(value, what="crop_size")
        super().__setattr__(name, value)

    @property
    def target(self) -> tuple[int | tuple[int, int] | None, tuple[int, int] | None]:
        """What images are resized to, a shortest edge or (height, width), and the (height, width)
        that is cropped from the center; None leaves the step out.
        """
        size = None
        if self.do_resize:
            size = self.size.get("shortest_edge") or (self.size["height"], self.size["width"])
        crop = self.crop_size if self.do_center_crop else None
        return size, None if crop is None else (crop["height"], crop["width"])

    def _geometry(
        self, height: int, width: int
    ) -> tuple[tuple[int, int] | None, tuple[int, int] | None]:
        """(height, width) to resize an image to, and to crop from its center.

        None leaves the step out.
        """
        size, crop = self.target
        return shortest_edge_size(height, width, size) if isinstance(size, int) else size, crop

    def resized_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width to which an image is resized, before any crop."""
        return self._geometry(height, width)[0] or (height, width)

    def __call__(self, images: Any, **kwargs: Any) -> BatchFeature:
        """Same as `preprocess`."""
        return self.preprocess(images, **kwargs)

    def preprocess(self, images: Any, **kwargs: Any) -> BatchFeature:
        """A batch of pixels from images.

        Args:
            images: One image or a list: a path, bytes, a PIL image, or an array or tensor of
                shape (H, W), (H, W, C) or (C, H, W). Integers count from 0 to 255 (16-bit ones
                are scaled); floats are taken as they are, so give `do_rescale=False` where they are
                from 0 to 1 already.
            **kwargs: `return_tensors` ("pt", "np", "tf", "jax"; None gives a list of arrays),
                `data_format` ("channels_first", the default, or "channels_last"),
                `input_data_format` (inferred from the shape if None), and any field of the
                processor, for this call.

        Returns:
            `pixel_values`, float32 of shape (N, C, height, width) after resizing, cropping, `x *
            rescale_factor` and `(x - image_mean) / image_std`, as far as those steps are on.

        Raises:
            InputError: What is not an image, images of different sizes for one tensor, or a value
                that no step can take; the one of a list is named.
        """
        call = {
            name: kwargs.pop(name)
            for name in ("return_tensors", "data_format", "input_data_format")
            if name in kwargs
        }
        return self._with(**kwargs)._run(images, **call)

    def _with(self, **overrides: Any) -> Self:
        """Itself with other values; None keeps a value."""
        overrides = {
            self.aliases.get(name, name): value
            for name, value in overrides.items()
            if value is not None
        }
        if not overrides:
            return self
        names = [field.name for field in fields(self)] + ["do_convert_rgb"]  # type: ignore[arg-type]
        unknown = sorted(set(overrides) - set(names))
        if unknown:
            raise InputError(
                f"{type(self).__name__} has no option {', '.join(unknown)}; there are"
                f" {', '.join(sorted(set(names)))}"
            )
        changed = copy.copy(self)
        for name, value in overrides.items():
            setattr(changed, name, value)
        changed.__post_init__()
        return changed

    def _run(
        self,
        images: Any,
        return_tensors: Any = None,
        data_format: Any = CHANNELS_FIRST,
        input_data_format: Any = None,
    ) -> BatchFeature:
        """The whole pipeline with this processor's own values."""
        layout_in = _choice(
            "input_data_format",
            input_data_format,
            (None, CHANNELS_FIRST, CHANNELS_LAST, NO_CHANNELS),
        )
        layout_out = _choice("data_format", data_format, (None, CHANNELS_FIRST, CHANNELS_LAST))
        single = list(flatten(images, 2 if layout_in == NO_CHANNELS else 3))
        if not single:
            raise InputError("no images: the list is empty")
        ready = []
        # Statistics of four channels are of arrays whose fourth channel is not transparency.
        convert = self.do_convert_rgb and np.size(self.image_mean) != 4
        for i, image in enumerate(single):
            try:
                pixels, layout = decode(image, convert_rgb=convert, input_data_format=layout_in)
                ready.append(
                    (
                        resize_and_crop(pixels, *self._geometry(*pixels.shape[:2]), self.resample),
                        layout_out or layout,
                    )
                )
            except InputError as error:
                if len(single) == 1:
                    raise
                raise InputError(f"image {i + 1} of {len(single)}: {error}") from error
        if self.do_rescale and any(_in_unit_range(image) for image in single):
            logger.warning(
                "images of floats from 0 to 1 are rescaled again, which makes them black; pass"
                " do_rescale=False for values that are from 0 to 1 already"
            )
        return BatchFeature({"pixel_values": self._normalized(ready, return_tensors)})

    def resize(self, image: Any, size: Any = None, resample: int | None = None) -> Array:
        """An image at a size, (H, W, C).

        Args:
            image: Of any kind that `preprocess` takes.
            size: As the field `size`; None is the processor's own.
            resample: As the field.
        """
        own = self._with(do_resize=True, do_center_crop=False, size=size, resample=resample)
        return own._step(image)

    def center_crop(self, image: Any, size: Any = None) -> Array:
        """The center of an image, (H, W, C), zeros around one that is too small.

        Args:
            image: Of any kind that `preprocess` takes.
            size: As the field `crop_size`; None is the processor's own.
        """
        size = self.crop_size if size is None else size
        return self._with(do_resize=False, do_center_crop=True, crop_size=size)._step(image)

    def rescale(self, image: Any, scale: float | None = None) -> Array:
        """An array times a number, float32, in its own layout; None is `rescale_factor`."""
        scale = self.rescale_factor if scale is None else scale
        return np.asarray(image).astype(np.float32) * np.float32(scale)

    def normalize(self, image: Any, mean: Any = None, std: Any = None) -> Array:
        """`(image - mean) / std` by channel, float32, in its own layout.

        Args:
            image: (C, H, W) or (H, W, C).
            mean: One number per channel, or one for all; None is `image_mean`.
            std: Likewise; None is `image_std`.
        """
        pixels = np.asarray(image).astype(np.float32)
        mean, std = (
            np.atleast_1d(np.asarray(own if given is None else given, np.float32))
            for given, own in ((mean, self.image_mean), (std, self.image_std))
        )
        if pixels.ndim == 3 and pixels.shape[-1] not in (1, 3, len(mean)):
            mean, std = mean.reshape(-1, 1, 1), std.reshape(-1, 1, 1)  # (C, H, W)
        out: Array = (pixels - mean) / std
        return out

    def _step(self, image: Any) -> Array:
        """An image (H, W, C) resized and cropped as this processor does."""
        pixels, _ = decode(image, convert_rgb=self.do_convert_rgb)
        return resize_and_crop(pixels, *self._geometry(*pixels.shape[:2]), self.resample)

    def _normalized(self, images: list[tuple[Array, str]], return_tensors: Any) -> Any:
        """(H, W, C) images, each with the layout wanted, as float32.

        A list, or one tensor of the framework.
        """
        kind = _choice("return_tensors", return_tensors, (None, "np", "pt", "tf", "jax"))
        scale, shift = self._scale_and_shift()
        arrays = []
        batch: Array | None = None
        for i, (image, layout) in enumerate(images):
            per_channel = [len(v) for v in (scale, shift) if len(v) not in (1, image.shape[-1])]
            if per_channel:
                raise InputError(
                    f"image_mean and image_std have {per_channel[0]} values, but the image has"
                    f" {image.shape[-1]} channels"
                )
            first = layout != CHANNELS_LAST
            view = image.transpose(2, 0, 1) if first else image  # (C, H, W) or (H, W, C)
            if not (self.do_rescale or self.do_normalize):
                arrays.append(np.ascontiguousarray(view))
                continue
            if kind and batch is None:
                batch = np.empty((len(images), *view.shape), np.float32)  # (N, C, H, W)
            out = (
                np.empty(view.shape, np.float32)
                if batch is None or view.shape != batch.shape[1:]
                else batch[i]
            )
            wide = (-1, 1, 1) if first else (-1,)
            normalize(view, scale.reshape(wide), shift.reshape(wide), out)
            arrays.append(out)
        if not kind:
            return arrays
        shapes = sorted({array.shape for array in arrays})
        if len(shapes) > 1:
            text = ", ".join(map(str, shapes))
            raise InputError(
                f"images of different shapes {text} cannot be one batch; resize and crop them, or"
                " leave out return_tensors"
            )
        return to_framework(np.stack(arrays) if batch is None else batch, kind)

    def _scale_and_shift(self) -> tuple[Array, Array]:
        """`x * scale + shift` is rescaling and normalizing in one.

        Each of one entry a channel, or one for all.
        """
        mean = np.atleast_1d(np.asarray(self.image_mean if self.do_normalize else 0.0, np.float64))
        std = np.atleast_1d(np.asarray(self.image_std if self.do_normalize else 1.0, np.float64))
        factor = self.rescale_factor if self.do_rescale else 1.0
        return (factor / std).astype(np.float32), (-mean / std).astype(np.float32)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], **overrides: Any) -> Self:
        """A processor from the values of a preprocessor_config.json, older ones too.

        Keywords win over them.
        """
        if "self" in values:
            raise InputError("an image processor cannot have a value named 'self'")
        merged = {
            cls.aliases.get(key, key): value for key, value in (*values.items(), *overrides.items())
        }
        # there is one pipeline, and it is fast
        loading = ("_from_auto", "_commit_hash", "_processor_class")
        for key in ("image_processor_type", "feature_extractor_type", "use_fast", *loading):
            merged.pop(key, None)
        return cls(**merged)

    @classmethod
    def get_image_processor_dict(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """A processor's values, and the keywords that do not say where it is."""
        from headstart.hub.options import split_hub

        hub, others = split_hub(kwargs)
        where = {"subfolder": others.pop("subfolder", "")} | hub
        return cls.from_pretrained(pretrained_model_name_or_path, **where).to_dict(), others

    @classmethod
    def from_json_file(cls, json_file: str | os.PathLike[str]) -> Self:
        """A processor from a file that `to_json_file` wrote."""
        return cls.from_dict(read_object(Path(json_file)))

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoImageProcessor") -> NoReturn:
        """Refuses: no code is saved with a processor.

        Raises:
            ConfigError: Always; `AutoImageProcessor.register` is the alternative.
        """
        from headstart.registry import refuse_saved_code

        refuse_saved_code(cls.__name__, auto_class)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        revision: str | None = None,
        subfolder: str = "",
        cache_dir: str | os.PathLike[str] | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
        return_unused_kwargs: bool = False,
        **overrides: Any,
    ) -> Any:
        """A processor from what `save_pretrained`, here or in transformers, has written.

        Args:
            pretrained_model_name_or_path: A folder with `preprocessor_config.json`, that file, or a
                Hub id.
            revision: Branch, tag or commit on the Hub.
            subfolder: Where in a local folder the file lies.
            cache_dir: Where downloads are kept.
            token: Token of the Hub.
            local_files_only: Take only what is on disk.
            return_unused_kwargs: Return the keywords that are not fields beside the processor.
            **overrides: Fields that win over the file's.

        Raises:
            NotFoundError: No such model or file.
            FileFormatError: The file is not JSON, or holds no values.
        """
        from headstart.hub.options import split_hub, within
        from headstart.hub.resolve import resolve_file

        older, overrides = split_hub(overrides)
        unused = {}
        if return_unused_kwargs:
            known = {field.name for field in fields(cls)} | KNOWN_OTHERS | {*cls.aliases}  # type: ignore[arg-type]
            unused = {key: overrides.pop(key) for key in [*overrides] if key not in known}
        path = Path(within(Path(pretrained_model_name_or_path), subfolder))
        if not path.is_file():
            hub: dict[str, Any] = {
                "revision": revision,
                "token": token,
                "local_files_only": local_files_only,
            }
            hub["cache_dir"] = None if cache_dir is None else Path(cache_dir)
            name = str(path) if subfolder else str(pretrained_model_name_or_path)
            found = resolve_file(name, "preprocessor_config.json", **(hub | older))
            assert found is not None  # only an optional file can be missing
            path = found
        made = cls.from_dict(read_object(path), **overrides)
        return (made, unused) if return_unused_kwargs else made

    def to_dict(self) -> dict[str, Any]:
        """Every value as plain data, as preprocessor_config.json holds it."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]
        values |= {key: getattr(self, key) for key in self._others}
        return copy.deepcopy(values | {"image_processor_type": self.image_processor_type})

    def to_json_string(self) -> str:
        """`to_dict` as JSON with sorted keys."""
        return json.dumps(self.to_dict(), indent=2, sort_keys=True) + "\n"

    def to_json_file(self, json_file_path: str | os.PathLike[str]) -> None:
        """Writes `to_json_string` to a file, atomically."""
        from headstart.checkpoint import atomic_write

        atomic_write(Path(json_file_path), self.to_json_string().encode())

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        push_to_hub: bool = False,
        repo_id: str | None = None,
        **hub: Any,
    ) -> list[str]:
        """Writes `preprocessor_config.json` into the folder (made if needed), and returns its path
        in a list.

        `push_to_hub` also uploads the folder, to `repo_id` (default the folder's name); `hub` as
        for the method of that name.

        Raises:
            TypeError: Another keyword.
        """
        from headstart.checkpoint import atomic_write
        from headstart.hub.push import check_upload, upload_saved

        check_upload(hub)
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "preprocessor_config.json"
        atomic_write(path, self.to_json_string().encode())
        upload_saved(folder, push_to_hub, repo_id, hub)
        return [str(path)]

    def push_to_hub(self, repo_id: str, **hub: Any) -> str:
        """Uploads `preprocessor_config.json` to "owner/name" and returns its address.

        Args:
            repo_id: "owner/name".
            **hub: `token`, `private`, `revision`, `commit_message`.
        """
        from headstart.hub.push import push_saved

        return push_saved(self, repo_id, hub)

    def __eq__(self, other: object) -> bool:
        return (
            self.to_dict() == other.to_dict()
            if isinstance(other, BaseImageProcessor)
            else NotImplemented
        )

    __hash__ = object.__hash__

    def __repr__(self) -> str:
        return f"{type(self).__name__} {self.to_json_string()}"


def _choice(name: str, value: Any, allowed: tuple[str | None, ...]) -> str | None:
    """A word out of a few; enums of other libraries count by their value."""
    value = getattr(value, "value", value)
    if value not in allowed:
        raise InputError(f"{name}={value!r}: expected one of {', '.join(map(repr, allowed))}")
    return value  # type: ignore[no-any-return]
