"""What the Flax networks share.

The wrapper that holds parameters, loading, saving, output classes as trees, activations.
"""

import functools
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from headstart.checkpoint.names import Names, PublishedNames
from headstart.config import Compat, PreTrainedConfig
from headstart.errors import ConfigError, InputError, MissingExtraError, WeightsError
from headstart.hub.options import split_hub, within
from headstart.hub.push import check_upload, push_saved, upload_saved
from headstart.nn.pretrained import (
    check_format,
    check_keywords,
    fresh_message,
    misfit_message,
    read_config,
    save_network,
)
from headstart.outputs import ModelOutput, output_classes

try:
    import jax
    import jax.numpy as jnp
    from flax.traverse_util import flatten_dict, unflatten_dict
except ImportError as error:
    raise MissingExtraError("flax", "flax") from error

import numpy as np

logger = logging.getLogger("headstart")
Params = dict[str, Any]  # nested: module → … → name → array


def register_outputs() -> None:
    """Makes JAX see the arrays inside our output classes, so that they may leave `jit`, `grad` and
    `vmap`.
    """
    for cls in output_classes():

        def build(keys: tuple[str, ...], values: Any, cls: type[ModelOutput] = cls) -> ModelOutput:
            return cls(**dict(zip(keys, values, strict=True)))

        def with_keys(output: ModelOutput) -> tuple[list[Any], tuple[str, ...]]:
            return [(jax.tree_util.GetAttrKey(key), value) for key, value in output.items()], tuple(
                output.keys()
            )

        def flatten(output: ModelOutput) -> tuple[list[Any], tuple[str, ...]]:
            return list(output.values()), tuple(output.keys())

        if not jax.tree_util.all_leaves([cls()]):  # Keras on JAX has registered them
            continue
        jax.tree_util.register_pytree_with_keys(cls, with_keys, build, flatten)


register_outputs()

ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_new": functools.partial(jax.nn.gelu, approximate=True),
    "gelu_pytorch_tanh": functools.partial(jax.nn.gelu, approximate=True),
    # Hendrycks & Gimpel 2016, the sigmoid form
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "swish": jax.nn.silu,
    "tanh": jnp.tanh,
    **{name: getattr(jax.nn, name) for name in ("relu", "selu", "silu", "mish")},
}


def activation(name: str | Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The activation of that name, or the function itself.

    Raises:
        ConfigError: No activation of that name.
    """
    if callable(name):
        return name
    if name not in ACTIVATIONS:
        raise ConfigError(f"hidden_act={name!r}; expected one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def check_pixels(pixel_values: Any, channels: int) -> Any:
    """The images (B, C, H, W) of a call as an array (B, H, W, C).

    Raises:
        InputError: None given, another number of axes or channels, or not floating-point.
    """
    if pixel_values is None:
        raise InputError(
            "no pixel_values given; pass a (batch, channels, height, width) array, such as an image"
            " processor returns"
        )
    pixels = jnp.asarray(pixel_values)
    if pixels.ndim != 4 or pixels.shape[1] != channels:
        raise InputError(
            f"pixel_values has shape {tuple(pixels.shape)}; expected (batch, {channels}, height,"
            " width)"
        )
    if not jnp.issubdtype(pixels.dtype, jnp.floating):
        raise InputError(
            f"pixel_values is {pixels.dtype}; expected floating-point values, such as an image"
            " processor returns"
        )
    return pixels.transpose(0, 2, 3, 1)  # (B, H, W, C)


def check_mesh(*trees: Any) -> None:
    """Refuses arrays that are divided over an axis of type Explicit, JAX's default for a mesh.

    Raises:
        InputError: There is one.
    """
    explicit = jax.sharding.AxisType.Explicit
    for array in jax.tree.leaves(trees):
        sharding = getattr(jax.typeof(array), "sharding", None)
        if sharding is None or not any(sharding.spec):
            continue
        if explicit in sharding.mesh.axis_types:
            names = ", ".join(map(repr, sharding.mesh.axis_names))
            raise InputError(
                f"an array is divided over a mesh with axes of type Explicit ({names}); make the"
                " mesh with axes of type Auto: jax.make_mesh(sizes, names,"
                " axis_types=(jax.sharding.AxisType.Auto,) * len(names))"
            )


# Parameters and PyTorch's tensors

Path_ = tuple[str, ...]  # where a parameter is in the tree
LEAVES = {"kernel": "weight", "scale": "weight"}  # Flax's name → PyTorch's


def torch_name(path: Path_) -> str:
    """The published name of a parameter in PyTorch's files.

    `("encoder", "layer", "0", "layernorm_before", "scale")` is
    `encoder.layer.0.layernorm_before.weight`.
    """
    *modules, leaf = path
    return ".".join([*modules, LEAVES.get(leaf, leaf)])


def torch_layout(path: Path_, value: Any) -> Any:
    """A parameter as PyTorch lays it out: matrices (I, O) → (O, I), filters HWIO → OIHW."""
    if path[-1] != "kernel":
        return value
    return value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T


def flax_layout(path: Path_, value: Any) -> Any:
    """The inverse of `torch_layout`."""
    if path[-1] != "kernel":
        return value
    return value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T


def torch_shape(path: Path_, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a parameter in PyTorch's layout."""
    return tuple(torch_layout(path, np.empty(shape, np.void)).shape)  # of no bytes


class PreTrainedModel:
    """Base of the wrappers: a `flax.linen` module (`module`), its parameters (`params`), loading
    and saving.

    Parameters are a nested dict of arrays: float32, or what a loaded file holds. `dtype` is the
    type that the network computes in.
    """

    config_class: ClassVar[type[PreTrainedConfig]] = PreTrainedConfig
    module_class: ClassVar[Any] = None
    base_model_prefix: ClassVar[str] = ""
    main_input_name: ClassVar[str] = "pixel_values"
    heads: ClassVar[tuple[str, ...]] = ()
    torch_class: ClassVar[str] = ""  # what config.json calls the network

    def __init__(
        self,
        config: Any,
        input_shape: tuple[int, ...] | None = None,
        seed: int = 0,
        dtype: Any = jnp.float32,
        _do_init: bool = True,
        **module_options: Any,
    ) -> None:
        if not isinstance(config, self.config_class):
            raise ConfigError(
                f"{type(self).__name__} takes a {self.config_class.__name__}, not a"
                f" {type(config).__name__}"
            )
        self.config, self.dtype = config, as_dtype(dtype)
        self.input_shape = self.default_shape() if input_shape is None else tuple(input_shape)
        self.module = self.module_class(config=config, dtype=self.dtype, **module_options)
        self.key = jax.random.key(seed)
        self._held = _do_init
        self._params: Params | None = self.init_weights(self.key) if _do_init else None

    # What a family fills in

    @classmethod
    def name_table(cls, config: Any) -> Names:
        """The family's table of published names."""
        return PublishedNames(cls.base_model_prefix)

    @classmethod
    def fit(cls, tensors: Mapping[str, Any], config: Any) -> Mapping[str, Any]:
        """Published tensors, changed where that makes them fit the configuration."""
        return tensors

    def default_shape(self) -> tuple[int, ...]:
        """Shape of the inputs that parameters are made with."""
        raise InputError(f"{type(self).__name__} needs an input_shape")

    # Parameters

    @property
    def params(self) -> Params:
        """The parameters, as a nested dict.

        Raises:
            InputError: Made with `_do_init=False`: the caller holds them.
        """
        if self._params is None:
            raise InputError(
                "the network was made with _do_init=False and holds no parameters; pass params= to"
                " the call"
            )
        return self._params

    @params.setter
    def params(self, params: Mapping[str, Any]) -> None:
        given, wanted = set(flatten_dict(params)), set(flatten_dict(self.params_shape_tree))
        if given != wanted:
            missing, unknown = (
                ["/".join(path) for path in paths] for paths in (wanted - given, given - wanted)
            )
            raise WeightsError(misfit_message("params", type(self).__name__, missing, unknown, ()))
        if not self._held:
            raise InputError(
                "the network was made with _do_init=False and holds no parameters; pass params= to"
                " the call"
            )
        self._params = unflatten_dict(flatten_dict(params))

    @functools.cached_property
    def params_shape_tree(self) -> Params:
        """Shape and type of every parameter, without making one."""
        return jax.eval_shape(self._init, self.key)

    @property
    def required_params(self) -> set[Path_]:
        """Where every parameter is in the tree."""
        return set(flatten_dict(self.params_shape_tree))

    def _init(self, key: Any) -> Params:
        params: Params = self.module.init(key, jnp.zeros(self.input_shape, self.dtype))["params"]
        return params

    def init_weights(
        self,
        rng: Any,
        input_shape: tuple[int, ...] | None = None,
        params: Mapping[str, Any] | None = None,
    ) -> Params:
        """Random parameters.

        Args:
            rng: A key, as `jax.random.key(0)` makes it.
            input_shape: Of the inputs to the module, (B, H, W, C); the parameters do not depend on
                B, H and W.
            params: Parameters to keep; only what they lack is initialized.
        """
        if input_shape is not None:
            self.input_shape = tuple(input_shape)
        # jit leaves out the forward pass, whose result is not used
        fresh: Params = jax.jit(self._init)(rng)
        if params is None:
            return fresh
        complete: Params = unflatten_dict(flatten_dict(fresh) | flatten_dict(params))
        return complete

    def num_parameters(self) -> int:
        """Number of weights."""
        return sum(int(np.prod(each.shape)) for each in jax.tree.leaves(self.params_shape_tree))

    def enable_gradient_checkpointing(self) -> None:
        """Recomputes each block in the backward pass instead of keeping what it computed."""
        self.module = self.module.clone(gradient_checkpointing=True)

    gradient_checkpointing_enable = enable_gradient_checkpointing

    def to_bf16(self, params: Mapping[str, Any], mask: Any = None) -> Any:
        """A copy of the parameters in bfloat16; see `cast`."""
        return cast(params, jnp.bfloat16, mask)

    def to_fp16(self, params: Mapping[str, Any], mask: Any = None) -> Any:
        """A copy of the parameters in float16; see `cast`."""
        return cast(params, jnp.float16, mask)

    def to_fp32(self, params: Mapping[str, Any], mask: Any = None) -> Any:
        """A copy of the parameters in float32; see `cast`."""
        return cast(params, jnp.float32, mask)

    # Calls

    def wants(self, name: str, value: bool | None) -> bool:
        """An output flag of a call, or the configuration's where it is None."""
        return bool(getattr(self.config, name)) if value is None else value

    def finish(self, output: ModelOutput, return_dict: bool | None) -> Any:
        """The output as the caller wants it: named, or a tuple (`return_dict=False`)."""
        named = self.config.use_return_dict if return_dict is None else return_dict
        return output if named else output.to_tuple()

    # Loading and saving

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        dtype: Any = jnp.float32,
        *,
        config: PreTrainedConfig | str | Path | None = None,
        input_shape: tuple[int, ...] | None = None,
        seed: int = 0,
        revision: str | None = None,
        subfolder: str = "",
        cache_dir: str | Path | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
        compat: Compat | None = None,
        ignore_mismatched_sizes: bool = False,
        output_loading_info: bool = False,
        _do_init: bool = True,
        **config_overrides: Any,
    ) -> Any:
        """A network with the weights of a checkpoint: the PyTorch class's safetensors, or an old
        `flax_model.msgpack`.

        Args:
            pretrained_model_name_or_path: A folder, a file of any format, a Hub id, or an authors'
                name.
            dtype: Type to compute in, itself or its name. Parameters have the file's; `to_bf16`
                changes it.
            config: A configuration to use instead of the checkpoint's: itself, its file or
                folder.
            input_shape: See `init_weights`.
            seed: For what the checkpoint lacks.
            revision: Branch, tag or commit on the Hub.
            subfolder: Where in a local folder the checkpoint lies.
            cache_dir: Where downloads are kept; default the Hub's cache.
            token: Token of the Hub; default the one stored or in `HF_TOKEN`.
            local_files_only: Take only what is on disk.
            compat: Whose arithmetic: "authors" or "transformers"; None follows
                `headstart.config.resolve_compat`.
            ignore_mismatched_sizes: Initialize parameters randomly whose shape differs in the file.
            output_loading_info: Also return what was missing, unexpected or of another shape.
            _do_init: False returns the network and its parameters apart.
            **config_overrides: Values of the configuration that win over the checkpoint's, such as
                `num_labels=10`.

        Raises:
            TypeError: A keyword that neither loading nor the configuration knows.
            HubError: The name could not be turned into files (see its subclasses).
            FileFormatError: A file is damaged, unsafe or of an unknown format.
            WeightsError: The tensors do not fit the network; all misfits are listed.
        """
        from headstart.loading import load_checkpoint

        hub: dict[str, Any] = {
            "revision": revision,
            "cache_dir": cache_dir,
            "token": token,
            "local_files_only": local_files_only,
        }
        older, config_overrides = split_hub(config_overrides)
        hub |= older
        check_keywords(cls.config_class, config_overrides)
        name = within(pretrained_model_name_or_path, subfolder)
        given = read_config(cls.config_class, config, hub, name)
        formats = ("safetensors", "msgpack", "bin")
        made, tensors = load_checkpoint(
            name, cls.config_class, given, compat, config_overrides, hub, "numpy", formats
        )
        model = cls(made, input_shape, seed, dtype, _do_init=False)
        resized = ignore_mismatched_sizes or bool(
            {"num_labels", "id2label"} & set(config_overrides)
        )
        params, info = model.take(tensors, str(name), ignore_mismatched_sizes, resized)
        if _do_init:
            model._held, model._params = True, params
        found = [model, *([] if _do_init else [params]), *([info] if output_loading_info else [])]
        return found[0] if len(found) == 1 else tuple(found)

    def take(
        self, tensors: Mapping[str, Any], name: str, any_size: bool = False, head_size: bool = False
    ) -> tuple[Params, dict[str, list[Any]]]:
        """Parameters from published tensors in PyTorch's layout.

        What a file may lack is randomly initialized, what does not fit raises.
        """
        shapes = {
            path: tuple(each.shape) for path, each in flatten_dict(self.params_shape_tree).items()
        }
        own = {torch_name(path): path for path in shapes}
        found, missing, unknown = self.name_table(self.config).to_ours(
            self.fit(tensors, self.config), own
        )
        wanted = {key: torch_shape(path, shapes[path]) for key, path in own.items()}
        misfits = [
            (key, tuple(value.shape), wanted[key])
            for key, value in found.items()
            if tuple(value.shape) != wanted[key]
        ]
        lost = [key for key in missing if not self.is_head(key)]
        wrong = [
            each for each in misfits if not (any_size or (head_size and self.is_head(each[0])))
        ]
        if lost or wrong or unknown:
            raise WeightsError(misfit_message(name, type(self).__name__, lost, unknown, wrong))
        fresh = sorted({*missing, *(key for key, _, _ in misfits)})
        flat = {own[key]: value for key, value in found.items() if key not in fresh}
        # A copy: a parameter must stay as it is when the file changes, and may be donated to a
        # training step.
        params = {
            path: jnp.array(flax_layout(path, np.asarray(value))) for path, value in flat.items()
        }
        if fresh:
            initial = flatten_dict(self.init_weights(self.key))
            params |= {own[key]: initial[own[key]] for key in fresh}
            logger.warning("%s", fresh_message(name, fresh))
        info: dict[str, list[Any]] = {
            "missing_keys": missing,
            "unexpected_keys": unknown,
            "mismatched_keys": misfits,
            "error_msgs": [],
        }
        return unflatten_dict(params), info

    def is_head(self, name: str) -> bool:
        """Whether a checkpoint may lack this parameter: it is of a head."""
        return any(name == head or name.startswith(head + ".") for head in self.heads)

    def save_pretrained(
        self,
        save_directory: str | Path,
        params: Mapping[str, Any] | None = None,
        push_to_hub: bool = False,
        max_shard_size: str | int = "5GB",
        *,
        safe_serialization: bool = True,
        repo_id: str | None = None,
        **hub: Any,
    ) -> None:
        """Writes a folder that `from_pretrained` of this class and of the PyTorch class read:
        `config.json`, `model.safetensors`.

        Args:
            save_directory: Made if it does not exist.
            params: The parameters to save; default those that the network holds.
            push_to_hub: Also upload the folder, to `repo_id` (default the folder's name).
            max_shard_size: Above it the weights are split, as "5GB" or a number of bytes.
            safe_serialization: Must be true: weights are written as safetensors.
            repo_id: Where to upload.
            **hub: `token`, `private`, `revision`, `commit_message`.

        Raises:
            TypeError: Another keyword.
            ConfigError: `safe_serialization=False`.
        """
        check_upload(hub)
        check_format(safe_serialization)
        flat = flatten_dict(self.params if params is None else params)
        arrays = {
            torch_name(path): np.ascontiguousarray(torch_layout(path, np.asarray(value)))
            for path, value in flat.items()
        }
        published = self.name_table(self.config).to_theirs(arrays)
        name = self.torch_class or type(self).__name__
        save_network(save_directory, self.config, published, name, max_shard_size)
        upload_saved(save_directory, push_to_hub, repo_id, hub)

    def push_to_hub(self, repo_id: str, params: Mapping[str, Any] | None = None, **hub: Any) -> str:
        """Uploads the network to the Hub and returns its address.

        Args:
            repo_id: "owner/name".
            params: The parameters; default those that the network holds.
            **hub: `token`, `private`, `revision`, `commit_message`.
        """
        return push_saved(self, repo_id, hub, params)


def as_dtype(dtype: Any) -> Any:
    """A floating-point type, given as itself or by its name.

    Raises:
        ConfigError: It is none.
    """
    try:
        found = jnp.dtype(dtype)
    except TypeError:
        found = None
    if found is None or not jnp.issubdtype(found, jnp.floating):
        raise ConfigError(
            f"dtype={dtype!r:.80}; expected a floating-point type such as jnp.float32, 'bfloat16'"
            " or 'float16'"
        )
    return found


def cast(params: Mapping[str, Any], dtype: Any, mask: Any = None) -> Any:
    """A copy of a tree with its floating-point arrays in another type.

    Args:
        params: A tree of arrays.
        dtype: The type.
        mask: A tree of the same form, True where the type is to change; None changes all.
    """

    def one(value: Any, chosen: bool = True) -> Any:
        return (
            value.astype(dtype) if chosen and jnp.issubdtype(value.dtype, jnp.floating) else value
        )

    return jax.tree.map(one, params) if mask is None else jax.tree.map(one, params, mask)
