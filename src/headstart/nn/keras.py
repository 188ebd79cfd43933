"""What the Keras networks share: the base model with loading, saving and training, output classes
as trees, losses.

Runs on every backend of Keras 3 (TensorFlow, JAX, PyTorch), chosen with `KERAS_BACKEND` before
Keras is imported.
"""

import logging
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
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
    import keras
    import optree  # comes with Keras
    from keras import ops
except ImportError as error:
    missing = str(error.name).partition(".")[0]
    if missing not in ("keras", "optree"):  # Keras is there, and the library it runs on is not
        raise MissingExtraError(
            missing, hint=", or choose another backend, such as KERAS_BACKEND=torch"
        ) from error
    raise MissingExtraError("keras", "keras") from error

import numpy as np

logger = logging.getLogger("headstart")


def _flatten(output: ModelOutput) -> tuple[list[Any], tuple[str, ...]]:
    return list(output.values()), tuple(output.keys())


def register_outputs() -> None:
    """Makes Keras and its backend see the tensors inside our output classes."""
    for cls in output_classes():

        def build(keys: tuple[str, ...], values: Any, cls: type[ModelOutput] = cls) -> ModelOutput:
            return cls(**dict(zip(keys, values, strict=True)))

        optree.register_pytree_node(cls, _flatten, build, namespace="keras")  # type: ignore[arg-type]
        if keras.backend.backend() == "jax":
            import jax

            if jax.tree_util.all_leaves([cls()]):  # else Flax has registered them
                jax.tree_util.register_pytree_node(cls, _flatten, build)
        elif keras.backend.backend() == "tensorflow":  # tf.nest asks the class itself
            cls.__tf_flatten__ = lambda self: (tuple(self.keys()), tuple(self.values()))  # type: ignore[attr-defined]
            rebuild = classmethod(lambda c, keys, values: c(**dict(zip(keys, values, strict=True))))
            cls.__tf_unflatten__ = rebuild  # type: ignore[attr-defined]
    if keras.backend.backend() == "torch":
        import headstart.nn.torch  # noqa: F401 - registers the classes with PyTorch


register_outputs()

ACTIVATIONS = {
    "quick_gelu": lambda x: x * ops.sigmoid(1.702 * x),  # Hendrycks & Gimpel 2016, the sigmoid form
    "gelu": lambda x: ops.gelu(x, approximate=False),
    "gelu_new": lambda x: ops.gelu(x, approximate=True),
    "gelu_pytorch_tanh": lambda x: ops.gelu(x, approximate=True),
    "swish": ops.silu,
    "mish": lambda x: x * ops.tanh(ops.softplus(x)),
    **{name: getattr(ops, name) for name in ("relu", "selu", "silu", "tanh")},
}


_LOADING: ContextVar[bool] = ContextVar("loading", default=False)


def weight_init(std: float) -> Any:
    """Initial values of a weight.

    Truncated normal, or zeros while `from_pretrained` makes a network whose weights are to be
    replaced.
    """
    return (
        keras.initializers.Zeros()
        if _LOADING.get()
        else keras.initializers.TruncatedNormal(stddev=std)
    )


def activation(name: Any) -> Any:
    """The activation of that name, or the function itself.

    Raises:
        ConfigError: No activation of that name.
    """
    if callable(name):
        return name
    if name not in ACTIVATIONS:
        raise ConfigError(f"hidden_act={name!r}; expected one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


class DropPath(keras.layers.Layer):
    """Stochastic depth.

    Drops the whole branch of an example with probability `rate` in training (Huang et al. 2016).
    """

    def __init__(self, rate: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.rate = rate
        self.seed_generator = keras.random.SeedGenerator() if rate else None
        self.built = True

    def call(self, x: Any, training: bool = False) -> Any:
        """x (B, L, D), each example zeroed or scaled by 1 / (1 - rate)."""
        if not training or self.seed_generator is None:
            return x
        keep = keras.random.uniform((ops.shape(x)[0], 1, 1), seed=self.seed_generator) >= self.rate
        return x * (ops.cast(keep, x.dtype) / (1.0 - self.rate))


class BatchNorm(keras.layers.BatchNormalization):
    """Batch norm of maps (B, H, W, C) that keeps the unbiased variance, as PyTorch and Keras 2 do
    and Keras 3 does not.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**({"momentum": 0.9, "epsilon": 1e-5} | kwargs))

    def call(self, x: Any, training: bool | None = None, mask: Any = None) -> Any:
        """x (B, H, W, C), the same shape.

        In training with the batch's statistics, which the running ones then follow.
        """
        if not training or not self.trainable:
            return super().call(x, training=False)
        B, H, W, _ = ops.shape(x)
        exact = ops.cast(x, "float32")
        mean, variance = ops.moments(exact, axes=(0, 1, 2))  # 2 × (C,)
        count = ops.cast(ops.convert_to_tensor(B * H * W), "float32")
        unbiased = variance * (count / ops.maximum(count - 1.0, 1.0))
        for kept, new in ((self.moving_mean, mean), (self.moving_variance, unbiased)):
            kept.assign(kept * self.momentum + ops.stop_gradient(new) * (1.0 - self.momentum))
        gamma, beta = ops.cast(self.gamma, "float32"), ops.cast(self.beta, "float32")
        y = ops.batch_normalization(
            exact, mean, variance, axis=-1, offset=beta, scale=gamma, epsilon=self.epsilon
        )
        return ops.cast(y, x.dtype)


def classification_loss(
    logits: Any, labels: Any, config: PreTrainedConfig, sample_weight: Any = None
) -> Any:
    """Loss of class scores as a scalar, its kind given by `config.problem_type` or the labels.

    Args:
        logits: (B, V).
        labels: (B,) integers: cross-entropy. (B, V) floats: binary cross-entropy. One label (V =
            1): mean squared error.
        config: Gives `num_labels` and `problem_type`.
        sample_weight: (B,) or (B, 1), multiplies each example's loss before the mean over B; None
            weighs all alike.

    Raises:
        InputError: Labels or weights whose shape or type does not fit.
    """
    losses = example_losses(logits, ops.convert_to_tensor(labels), config)  # (B,)
    if sample_weight is None:
        return ops.mean(losses)
    weight = ops.cast(ops.convert_to_tensor(sample_weight), losses.dtype)
    if len(weight.shape) not in (1, 2) or tuple(weight.shape[1:]) not in ((), (1,)):
        raise InputError(
            f"sample_weight has shape {tuple(weight.shape)}; expected one weight an example,"
            " (batch,)"
        )
    return ops.mean(losses * ops.reshape(weight, (-1,)))


def example_losses(logits: Any, labels: Any, config: PreTrainedConfig) -> Any:
    """Loss of each example (B,), as `classification_loss` describes it."""
    kind, dtype = config.problem_type, keras.backend.standardize_dtype(labels.dtype)
    if kind is None and config.num_labels == 1:
        kind = "regression"
    elif kind is None:
        class_numbers = "int" in dtype or len(labels.shape) == 1
        kind = "single_label_classification" if class_numbers else "multi_label_classification"
    if kind == "single_label_classification" and "int" not in dtype:
        raise InputError(
            f"labels are class numbers of type {dtype}; cast to int, or give zeros and ones of"
            " shape (batch, num_labels)"
        )
    if kind == "single_label_classification":
        return ops.sparse_categorical_crossentropy(
            ops.reshape(labels, (-1,)), logits, from_logits=True
        )
    labels = ops.cast(labels, logits.dtype)
    if kind == "regression" and config.num_labels == 1:
        return ops.square(ops.reshape(logits, (-1,)) - ops.reshape(labels, (-1,)))
    if len(labels.shape) != len(logits.shape) or labels.shape[-1] != logits.shape[-1]:
        raise InputError(
            f"labels have shape {tuple(labels.shape)}; {kind} expects {tuple(logits.shape)}"
        )
    if kind == "regression":
        return ops.mean(ops.square(logits - labels), axis=-1)
    return ops.mean(ops.binary_crossentropy(labels, logits, from_logits=True), axis=-1)


# Variables of Keras' own layers → leaf names in our tables, which are PyTorch's.
LEAVES = {
    "kernel": "weight", "bias": "bias", "gamma": "weight", "beta": "bias",
    "moving_mean": "running_mean", "moving_variance": "running_var",
    "cls_token": "cls_token",
}  # fmt: skip
# Kind of layer → axes of PyTorch's weight that give Keras' kernel. Depthwise comes first: it may be
# a kind of the other.
KERNELS = (
    (keras.layers.DepthwiseConv2D, (2, 3, 0, 1)),  # (C, 1, k, k) → (k, k, C, 1)
    (keras.layers.Conv2D, (2, 3, 1, 0)),  # (O, I, k, k) → (k, k, I, O)
    (keras.layers.Dense, (1, 0)),  # (O, I) → (I, O)
)


def named_variables(
    layer: Any, prefix: str = ""
) -> Iterator[tuple[str, Any, tuple[int, ...] | None]]:
    """Every variable of the layers inside.

    Its published name, itself, and the axes that turn PyTorch's layout into its own.
    """
    for attribute, leaf in LEAVES.items():
        variable = getattr(layer, attribute, None)
        if isinstance(variable, keras.Variable):
            axes = (
                next((axes for kind, axes in KERNELS if isinstance(layer, kind)), None)
                if attribute == "kernel"
                else None
            )
            yield prefix + leaf, variable, axes
    # On the torch backend, layers are modules, which keep each other apart from plain attributes.
    for attribute in [*vars(layer), *vars(layer).get("_modules", ())]:
        if attribute.startswith("_"):
            continue
        value = getattr(layer, attribute)
        attribute = attribute.rstrip("_")  # Keras itself calls something `output`
        if isinstance(value, keras.layers.Layer):
            yield from named_variables(value, f"{prefix}{attribute}.")
        elif isinstance(value, list | tuple):
            for i, each in enumerate(value):
                if isinstance(each, keras.layers.Layer):
                    yield from named_variables(each, f"{prefix}{attribute}.{i}.")


class PreTrainedModel(keras.Model):
    """Base of every Keras network: loading, saving, and training on its named outputs.

    All variables exist as soon as a network is made. Its published files are those of the PyTorch
    class of the same family.
    """

    config_class: ClassVar[type[PreTrainedConfig]] = PreTrainedConfig
    base_model_prefix: ClassVar[str] = ""
    main_input_name: ClassVar[str] = "pixel_values"
    heads: ClassVar[tuple[str, ...]] = ()
    inputs_order: ClassVar[tuple[str, ...]] = ("pixel_values", "labels")
    torch_class: ClassVar[str] = ""  # what config.json calls the network
    config: Any

    def __init__(self, config: PreTrainedConfig, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not isinstance(config, self.config_class):
            raise ConfigError(
                f"{type(self).__name__} takes a {self.config_class.__name__}, not a"
                f" {type(config).__name__}"
            )
        self.config = config

    @classmethod
    def name_table(cls, config: Any) -> Names:
        """The family's table of published names."""
        return PublishedNames(cls.base_model_prefix)

    def made(self) -> None:
        """Called at the end of a constructor: every variable exists, and inputs may have any size.

        `tf.saved_model.save` and TensorFlow Lite's converter read the shape from where Keras notes
        it when it builds a layer.
        """
        self._build_shapes_dict = {"input_shape": (None, self.config.num_channels, None, None)}
        self.built = True

    def build(self, input_shape: Any = None) -> None:
        """Nothing is left to build: the constructor made every variable."""
        self.built = True

    def build_from_config(self, config: dict[str, Any]) -> None:
        """Nothing is left to build when a `.keras` file is read either."""

    def get_config(self) -> dict[str, Any]:
        """What `.keras` files store: the configuration."""
        return {**super().get_config(), "config": self.config.to_dict()}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Any:
        """Inverse of `get_config`."""
        values = dict(config)
        return cls(cls.config_class.from_dict(values.pop("config")), **values)

    # Calls

    def unpack(self, first: Any, **others: Any) -> dict[str, Any]:
        """The inputs of a call by name.

        Given as keywords, or all in the first argument as a list, tuple or dict.
        """
        if isinstance(first, Mapping):
            given = dict(first)
        elif isinstance(first, list | tuple):
            if len(first) > len(self.inputs_order):
                raise InputError(
                    f"{len(first)} inputs given; expected at most {len(self.inputs_order)}:"
                    f" {', '.join(self.inputs_order)}"
                )
            given = dict(zip(self.inputs_order, first, strict=False))
        else:
            given = {self.main_input_name: first}
        unknown = [key for key in given if key not in self.inputs_order]
        if unknown:
            raise InputError(
                f"inputs hold {unknown[0]!r}; expected some of {', '.join(self.inputs_order)}"
            )
        return others | {key: value for key, value in given.items() if value is not None}

    def wants(self, name: str, value: bool | None) -> bool:
        """An output flag of a call, or the configuration's where it is None."""
        return bool(getattr(self.config, name)) if value is None else bool(value)

    def finish(self, output: ModelOutput, return_dict: bool | None) -> Any:
        """The output as the caller wants it: named, or a tuple (`return_dict=False`)."""
        named = self.config.use_return_dict if return_dict is None else return_dict
        return output if named else output.to_tuple()

    # Training with fit

    @staticmethod
    def scores(y_pred: Any) -> Any:
        """The class scores in an output of any form."""
        if isinstance(y_pred, ModelOutput):
            return y_pred.get("logits", y_pred)
        return (
            next((each for each in y_pred if len(each.shape) == 2), y_pred)
            if isinstance(y_pred, tuple)
            else y_pred
        )

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Any:
        """The compiled loss of the scores.

        Without one, the network's own, with the labels from the inputs or from `y`.
        """
        if self._compile_loss is not None or not hasattr(self, "classifier"):
            return super().compute_loss(
                x=x, y=y, y_pred=self.scores(y_pred), sample_weight=sample_weight, training=training
            )
        labels = self.labels_of(x, y)
        if labels is None:
            raise InputError(
                "no labels to learn from; give y, inputs with 'labels', or compile(loss=…)"
            )
        own = classification_loss(self.scores(y_pred), labels, self.config, sample_weight)
        losses = [own, *self.losses]
        return losses[0] if len(losses) == 1 else ops.sum(ops.stack(losses))

    def compute_metrics(self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        """The compiled metrics of the scores."""
        return super().compute_metrics(x, self.labels_of(x, y), self.scores(y_pred), sample_weight)

    def labels_of(self, x: Any, y: Any) -> Any:
        """The labels of a training batch: `y`, or those among the inputs."""
        if y is not None or not isinstance(x, Mapping | list | tuple):
            return y
        return self.unpack(x).get("labels")

    def predict_step(self, *arguments: Any) -> Any:
        """One batch of `predict`: the outputs without a loss, which has no row for each example."""
        *state, batch = arguments  # JAX passes the variables' values first
        x, _, _ = keras.utils.unpack_x_y_sample_weight(batch)
        inputs = {name: value for name, value in self.unpack(x).items() if name != "labels"}
        return super().predict_step(*state, (inputs,))

    def _get_jax_state(self, *arguments: Any, **flags: Any) -> Any:
        """The variables' values for a step on JAX.

        Keras empties the variables before the first step, so that an error in it (labels of a wrong
        type) would leave a network without weights. The step donates the values, so keeping them
        takes no memory.
        """
        return super()._get_jax_state(*arguments, **(flags | {"purge_model_variables": False}))

    # Loading and saving

    def export(
        self,
        filepath: str | Path,
        format: str = "tf_saved_model",
        verbose: bool | None = None,
        input_signature: Any = None,
        **kwargs: Any,
    ) -> None:
        """Writes the network for inference alone, as `keras.Model.export` does.

        Args:
            filepath: Folder of a SavedModel, or the file of another format.
            format: "tf_saved_model", or another that Keras writes, such as "onnx".
            verbose: Whether Keras prints a summary.
            input_signature: `keras.InputSpec`s of the inputs; default any number of images of any
                size, (None, C, None, None).
            **kwargs: Of `keras.Model.export`.

        Raises:
            InputError: No signature on the PyTorch backend, which needs one size.
        """
        if keras.backend.backend() == "torch" and input_signature is None:
            raise InputError(
                "on its PyTorch backend Keras exports no network for images of any size; set"
                " KERAS_BACKEND=tensorflow or jax, give an input_signature of one size, or use"
                " headstart.export with the PyTorch class"
            )
        if input_signature is None:
            shape = (None, self.config.num_channels, None, None)
            input_signature = [keras.InputSpec(shape=shape, dtype="float32")]
        if keras.backend.backend() == "jax" and format == "tf_saved_model":
            # Gradients of convolutions with strides have no form for images of any size. JAX has
            # to know that no map is empty. Keras calls the open sides a, b, in their order.
            open_sides = [
                side for each in keras.tree.flatten(input_signature) for side in each.shape[1:]
            ].count(None)
            least = [f"{name} >= {self.config.smallest_image}" for name in "ab"[:open_sides]]
            options = {"with_gradient": False, "polymorphic_constraints": tuple(least)}
            kwargs.setdefault("jax2tf_kwargs", options)
        super().export(
            str(filepath), format, verbose=verbose, input_signature=input_signature, **kwargs
        )

    def save(self, filepath: str | Path, *arguments: Any, **kwargs: Any) -> None:
        """Writes a `.keras` file, as `keras.Model.save` does.

        Args:
            filepath: The file; its name ends in ".keras".
            *arguments: Of `keras.Model.save`.
            **kwargs: Of `keras.Model.save`.

        Raises:
            InputError: The name ends in ".h5": Keras reads no network of a class from there.
        """
        if Path(filepath).suffix in (".h5", ".hdf5"):
            raise InputError(
                f"{filepath}: Keras cannot read a subclassed network from an .h5 file again; save"
                " to a name that ends in .keras, or use save_weights('….weights.h5') or"
                " save_pretrained(folder)"
            )
        super().save(filepath, *arguments, **kwargs)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        config: PreTrainedConfig | str | Path | None = None,
        revision: str | None = None,
        subfolder: str = "",
        cache_dir: str | Path | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
        dtype: Any = None,
        compat: Compat | None = None,
        ignore_mismatched_sizes: bool = False,
        output_loading_info: bool = False,
        **config_overrides: Any,
    ) -> Any:
        """A network with the weights of a checkpoint: safetensors as PyTorch's, or an old
        `tf_model.h5`.

        Args:
            pretrained_model_name_or_path: A folder, a file of any format, a Hub id, or an authors'
                name.
            config: A configuration to use instead of the checkpoint's: itself, its file or
                folder.
            revision: Branch, tag or commit on the Hub.
            subfolder: Where in a local folder the checkpoint lies.
            cache_dir: Where downloads are kept; default the Hub's cache.
            token: Token of the Hub; default the one stored or in `HF_TOKEN`.
            local_files_only: Take only what is on disk.
            dtype: Keras' dtype policy, such as "mixed_bfloat16"; default the global one.
            compat: Whose arithmetic: "authors" or "transformers"; None follows
                `headstart.config.resolve_compat`.
            ignore_mismatched_sizes: Keep the random values of variables whose shape differs in the
                file.
            output_loading_info: Also return what was missing, unexpected or of another shape.
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
        formats = ("safetensors", "h5", "bin")
        made, tensors = load_checkpoint(
            name, cls.config_class, given, compat, config_overrides, hub, "numpy", formats
        )
        loading = _LOADING.set(True)
        try:
            model = cls(made, **({} if dtype is None else {"dtype": dtype}))
        finally:
            _LOADING.reset(loading)
        resized = ignore_mismatched_sizes or bool(
            {"num_labels", "id2label"} & set(config_overrides)
        )
        info = model.assign(tensors, str(name), ignore_mismatched_sizes, resized)
        return (model, info) if output_loading_info else model

    def assign(
        self, tensors: Mapping[str, Any], name: str, any_size: bool = False, head_size: bool = False
    ) -> dict[str, list[Any]]:
        """Takes published tensors in PyTorch's layout.

        What a file may lack keeps its random values, what does not fit raises.
        """
        own = {key: (variable, axes) for key, variable, axes in named_variables(self)}
        found, missing, unknown = self.name_table(self.config).to_ours(tensors, own)
        misfits = []
        for key, value in list(found.items()):
            variable, axes = own[key]
            value = np.asarray(value) if axes is None else np.transpose(np.asarray(value), axes)
            if value.shape == tuple(variable.shape):
                found[key] = value
            else:
                misfits.append((key, value.shape, tuple(variable.shape)))
                del found[key]
        lost = [key for key in missing if not self.is_head(key)]
        wrong = [
            each for each in misfits if not (any_size or (head_size and self.is_head(each[0])))
        ]
        if lost or wrong or unknown:
            raise WeightsError(misfit_message(name, type(self).__name__, lost, unknown, wrong))
        for key, value in found.items():
            own[key][0].assign(value.astype("float32"))
        fresh = sorted({*missing, *(key for key, _, _ in misfits)})
        for key in fresh:
            variable = own[key][0]
            if len(variable.shape) > 1:  # biases and norms have their initial values already
                variable.assign(
                    weight_init(self.config.initializer_range)(
                        tuple(variable.shape), dtype="float32"
                    )
                )
        if fresh:
            logger.warning("%s", fresh_message(name, fresh))
        return {
            "missing_keys": missing,
            "unexpected_keys": unknown,
            "mismatched_keys": misfits,
            "error_msgs": [],
        }

    def is_head(self, name: str) -> bool:
        """Whether a checkpoint may lack this parameter: it is of a head."""
        return any(name == head or name.startswith(head + ".") for head in self.heads)

    def named_arrays(self) -> dict[str, Any]:
        """Our name → array in PyTorch's layout, for every variable (and a count of batches for
        every batch norm).
        """
        arrays: dict[str, Any] = {}
        for key, variable, axes in named_variables(self):
            value = np.asarray(ops.convert_to_numpy(variable.value))
            arrays[key] = np.ascontiguousarray(
                value if axes is None else np.transpose(value, np.argsort(axes))
            )
            if key.endswith("running_var"):
                arrays[key.replace("running_var", "num_batches_tracked")] = np.zeros((), np.int64)
        return arrays

    def save_pretrained(
        self,
        save_directory: str | Path,
        *,
        max_shard_size: str | int = "5GB",
        saved_model: bool = False,
        safe_serialization: bool = True,
        push_to_hub: bool = False,
        repo_id: str | None = None,
        **hub: Any,
    ) -> None:
        """Writes a folder that `from_pretrained` of this class and of the PyTorch class read:
        `config.json`, `model.safetensors`.

        Args:
            save_directory: Made if it does not exist.
            max_shard_size: Above it the weights are split, as "5GB" or a number of bytes.
            saved_model: Must be false: `export` writes a SavedModel.
            safe_serialization: Must be true: weights are written as safetensors.
            push_to_hub: Also upload the folder, to `repo_id` (default the folder's name).
            repo_id: Where to upload.
            **hub: `token`, `private`, `revision`, `commit_message`.

        Raises:
            TypeError: Another keyword.
            ConfigError: `saved_model=True` or `safe_serialization=False`.
        """
        check_upload(hub)
        check_format(safe_serialization, saved_model)
        published = self.name_table(self.config).to_theirs(self.named_arrays())
        name = self.torch_class or type(self).__name__
        save_network(save_directory, self.config, published, name, max_shard_size)
        upload_saved(save_directory, push_to_hub, repo_id, hub)

    def push_to_hub(self, repo_id: str, **hub: Any) -> str:
        """Uploads the network to the Hub and returns its address.

        Args:
            repo_id: "owner/name".
            **hub: `token`, `private`, `revision`, `commit_message`.
        """
        return push_saved(self, repo_id, hub)
