"""CvT in Keras 3, on any of its backends: the same classes, names and steps as in `torch.py`.

Shapes: B images, C channels, H W height and width of a stage's map, L tokens (H * W, and the class
    token first where there is one),
D hidden size, A heads, K = D // A, V classes. Images and the maps returned are (B, C, H, W) as
documented; inside, maps are (B, H, W, D).
"""

from typing import Any, ClassVar

from headstart.checkpoint.names import PublishedNames
from headstart.errors import InputError
from headstart.models.cvt.config import CvtConfig
from headstart.models.cvt.weights import PUBLISHED_NAMES
from headstart.nn.keras import (
    BatchNorm,
    DropPath,
    PreTrainedModel,
    activation,
    classification_loss,
    weight_init,
)
from headstart.outputs import (
    ImageClassifierOutput,
    TFBaseModelOutputWithCLSToken,
    TFImageClassifierOutputWithNoAttention,
)

# isort: split
import keras  # after `headstart.nn.keras`, which says what to install
from keras import layers, ops


def to_map(tokens: Any, height: Any, width: Any) -> Any:
    """Tokens (B, H * W, D) as a map (B, H, W, D)."""
    return ops.reshape(tokens, (-1, height, width, tokens.shape[-1]))


def to_tokens(x: Any) -> Any:
    """Inverse of `to_map`: a map (B, H, W, D) as tokens (B, H * W, D)."""
    _, H, W, _ = ops.shape(x)
    return ops.reshape(x, (-1, H * W, x.shape[-1]))


def pad(x: Any, before: int, after: int) -> Any:
    """Zeros around the map x (B, H, W, D)."""
    return ops.pad(x, ((0, 0), (before, after), (before, after), (0, 0))) if before or after else x


class Part(layers.Layer):
    """Base of the layers of a stage: keeps the configuration, and makes its variables at once."""

    def __init__(self, config: CvtConfig, stage: int, dtype: Any = None, **kwargs: Any) -> None:
        super().__init__(dtype=dtype, **kwargs)
        self.config, self.stage = config, stage
        self.built = True

    def get_config(self) -> dict[str, Any]:
        """The configuration and the number of the stage."""
        return {**super().get_config(), "config": self.config.to_dict(), "stage": self.stage}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Any:
        """Inverse of `get_config`."""
        values = dict(config)
        return cls(CvtConfig.from_dict(values.pop("config")), **values)

    @property
    def init(self) -> Any:
        """Initial values of weights."""
        return weight_init(self.config.initializer_range)

    def part(self, name: str) -> dict[str, Any]:
        """Arguments of a layer inside: its published name below this one's, and the dtype."""
        return {"name": f"{self.name}_{name}", "dtype": self.dtype_policy}

    def dense(self, name: str, inputs: int, outputs: int, bias: bool = True) -> Any:
        """A linear map."""
        layer = layers.Dense(
            outputs, use_bias=bias, kernel_initializer=self.init, **self.part(name)
        )
        layer.build((None, inputs))
        return layer

    def layer_norm(self, name: str, size: int) -> Any:
        """A layer norm."""
        layer = layers.LayerNormalization(epsilon=self.config.layer_norm_eps, **self.part(name))
        layer.build((None, None, size))
        return layer


class Named(layers.Layer):
    """Layers under the names that the published checkpoints give them.

    Args:
        name: Name of this layer.
        **parts: The layers by their attribute.
    """

    def __init__(self, name: str, **parts: Any) -> None:
        super().__init__(name=name)
        for attribute, part in parts.items():
            setattr(self, attribute, part)
        self.built = True


class Embedding(Part):
    """Convolutional token embedding: a strided convolution, then a layer norm over the channels
    (section 3.1).
    """

    def __init__(self, config: CvtConfig, stage: int, **kwargs: Any) -> None:
        super().__init__(config, stage, **kwargs)
        before = config.embed_dim[stage - 1] if stage else config.num_channels
        self.padding = config.patch_padding[stage]
        self.projection = layers.Conv2D(
            config.embed_dim[stage],
            config.patch_sizes[stage],
            config.patch_stride[stage],
            data_format="channels_last",
            kernel_initializer=self.init,
            **self.part("projection"),
        )
        self.projection.build((None, None, None, before))
        self.normalization = self.layer_norm("normalization", config.embed_dim[stage])

    def call(self, x: Any) -> Any:
        """x (B, H', W', C) → (B, H, W, D)."""
        return self.normalization(self.projection(pad(x, self.padding, self.padding)))


class AvgPool(layers.Layer):
    """Mean pooling as PyTorch's with `ceil_mode`.

    A last window may reach over the edge, and only the part inside counts.
    """

    def __init__(self, kernel: int, stride: int, padding: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.kernel, self.stride, self.padding = kernel, stride, padding
        # A window begins before the right padding does.
        self.over = min(stride - 1, kernel - 1 - padding)
        self.built = True

    def call(self, x: Any) -> Any:
        """x (B, H, W, D) → (B, H', W', D)."""
        inside = pad(ops.ones_like(x[:1, :, :, :1]), 0, 0)  # (1, H, W, 1)
        if self.padding:  # padding counts as pixels
            inside = ops.pad(
                inside, ((0, 0), *((self.padding, self.padding),) * 2, (0, 0)), constant_values=1
            )
        inside, x = pad(inside, 0, self.over), pad(x, self.padding, self.padding + self.over)
        total, count = (
            ops.average_pool(each, self.kernel, self.stride, "valid", data_format="channels_last")
            for each in (x, inside)
        )  # (B, H', W', D), (1, H', W', 1)
        return total / count


class DepthwiseConvolution(Part):
    """Depthwise convolution and batch norm, before the linear map to queries, keys or values."""

    def __init__(self, config: CvtConfig, stage: int, query: bool, **kwargs: Any) -> None:
        super().__init__(config, stage, **kwargs)
        self.is_query = query
        D = config.embed_dim[stage]
        self.padding = config.padding_q[stage] if query else config.padding_kv[stage]
        self.convolution = layers.DepthwiseConv2D(
            config.kernel_qkv[stage],
            config.stride_q[stage] if query else config.stride_kv[stage],
            use_bias=False,
            data_format="channels_last",
            depthwise_initializer=self.init,
            **self.part("convolution"),
        )
        self.convolution.build((None, None, None, D))
        self.normalization = BatchNorm(**self.part("normalization"))
        self.normalization.build((None, None, None, D))

    def get_config(self) -> dict[str, Any]:
        """The configuration, the stage, and whether this is before queries."""
        return {**super().get_config(), "query": self.is_query}

    def call(self, x: Any, training: bool = False) -> Any:
        """x (B, H, W, D) → (B, H', W', D)."""
        x = self.convolution(pad(x, self.padding, self.padding))
        return self.normalization(x, training=training)


class Attention(Part):
    """Self-attention between the tokens of a stage and a smaller map of them."""

    def __init__(self, config: CvtConfig, stage: int, **kwargs: Any) -> None:
        super().__init__(config, stage, **kwargs)
        D = config.embed_dim[stage]
        self.num_heads = config.num_heads[stage]
        self.cls = int(config.cls_token[stage])
        # The authors scale by the whole width, not by a head's.
        self.scale = D**-0.5
        parts: dict[str, Any] = {}
        for name in ("query", "key", "value"):
            convolution, linear = f"convolution_projection_{name}", f"projection_{name}"
            parts[convolution] = Named(
                f"{self.name}_attention_{convolution}",
                convolution_projection=self.convolutional_projection(name),
            )
            parts[linear] = self.dense(f"attention_{linear}", D, D, config.qkv_bias[stage])
        self.attention = Named(f"{self.name}_attention", **parts)
        self.output_ = Named(f"{self.name}_output", dense=self.dense("output_dense", D, D))
        self.dropout = layers.Dropout(config.attention_drop_rate[stage], **self.part("dropout"))

    def convolutional_projection(self, name: str) -> Any:
        """What maps of the stage's tokens go through before they become queries, keys or values
        (section 3.2).
        """
        query = name == "query"
        part = self.part(f"attention_convolution_projection_{name}_convolution_projection")
        config, stage = self.config, self.stage
        method = config.qkv_projection_method[stage]
        if method == "dw_bn":
            return DepthwiseConvolution(config, stage, query=query, **part)
        if method == "avg" and not query:
            kernel, stride = config.kernel_qkv[stage], config.stride_kv[stage]
            return AvgPool(kernel, stride, config.padding_kv[stage], **part)
        return layers.Identity(**part)

    def project(self, name: str, grid: Any, cls: Any, training: bool) -> Any:
        """Queries, keys or values (B, A, L, K) of a map (B, H, W, D) and its class token (B, 1, D),
        which goes through the linear map alone.
        """
        convolve = getattr(self.attention, f"convolution_projection_{name}").convolution_projection
        y = to_tokens(convolve(grid, training=training))  # (B, H' * W', D)
        y = y if cls is None else ops.concatenate([cls, y], axis=1)  # (B, L, D)
        return self.heads(getattr(self.attention, f"projection_{name}")(y))

    def heads(self, x: Any) -> Any:
        """x (B, L, D) → (B, A, L, K)."""
        L, D = ops.shape(x)[1], x.shape[-1]
        return ops.transpose(
            ops.reshape(x, (-1, L, self.num_heads, D // self.num_heads)), (0, 2, 1, 3)
        )

    def call(self, x: Any, height: Any = None, width: Any = None, training: bool = False) -> Any:
        """x (B, L, D) → (B, L, D), and the weights (B, A, L, L') that each token gives to the
        keys.
        """
        L, D = ops.shape(x)[1], x.shape[-1]
        cls, patches = (x[:, :1], x[:, 1:]) if self.cls else (None, x)
        grid = to_map(patches, height, width)  # (B, H, W, D)
        q = self.project("query", grid, cls, training)  # (B, A, L, K)
        k = self.project("key", grid, cls, training)  # (B, A, L', K)
        v = self.project("value", grid, cls, training)  # (B, A, L', K)
        scores = ops.matmul(q * self.scale, ops.swapaxes(k, 2, 3))  # (B, A, L, L')
        weights = ops.softmax(scores, axis=-1)
        y = ops.matmul(self.dropout(weights, training=training), v)  # (B, A, L, K)
        y = ops.reshape(ops.transpose(y, (0, 2, 1, 3)), (-1, L, D))  # (B, L, D)
        return self.output_.dense(y), weights


class Block(Part):
    """Pre-norm transformer block."""

    def __init__(self, config: CvtConfig, stage: int, drop_path: float, **kwargs: Any) -> None:
        super().__init__(config, stage, **kwargs)
        self.rate = drop_path
        D = config.embed_dim[stage]
        inside = int(D * config.mlp_ratio[stage])
        self.layernorm_before = self.layer_norm("layernorm_before", D)
        self.attention = Attention(config, stage, **self.part("attention"))
        self.layernorm_after = self.layer_norm("layernorm_after", D)
        widen = self.dense("intermediate_dense", D, inside)
        narrow = self.dense("output_dense", inside, D)
        self.intermediate = Named(f"{self.name}_intermediate", dense=widen)
        self.output_ = Named(f"{self.name}_output", dense=narrow)
        self.act = activation(config.hidden_act)
        self.dropout = layers.Dropout(config.drop_rate[stage], **self.part("dropout"))
        self.drop_path = DropPath(drop_path, **self.part("drop_path"))

    def get_config(self) -> dict[str, Any]:
        """The configuration, the stage, and the rate of stochastic depth."""
        return {**super().get_config(), "drop_path": self.rate}

    def mlp(self, x: Any, training: bool = False) -> Any:
        """x (B, L, D), the same shape."""
        x = self.act(self.intermediate.dense(x))  # (B, L, mlp_ratio * D)
        return self.output_.dense(self.dropout(x, training=training))  # (B, L, D)

    def call(self, x: Any, height: Any = None, width: Any = None, training: bool = False) -> Any:
        """x (B, L, D) → (B, L, D), and the attention's weights."""
        y = self.layernorm_before(x)
        y, weights = self.attention(y, height=height, width=width, training=training)
        x = x + self.drop_path(self.dropout(y, training=training), training=training)  # (B, L, D)
        y = self.mlp(self.layernorm_after(x), training)
        y = self.dropout(y, training=training)
        return x + self.drop_path(y, training=training), weights  # (B, L, D)


class Stage(Part):
    """Tokens of a smaller map, and the blocks that work on them."""

    def __init__(self, config: CvtConfig, stage: int, **kwargs: Any) -> None:
        super().__init__(config, stage, **kwargs)
        embedding = Embedding(config, stage, **self.part("embedding_convolution_embeddings"))
        self.embedding = Named(f"{self.name}_embedding", convolution_embeddings=embedding)
        self.cls_token = None
        if config.cls_token[stage]:
            self.cls_token = self.add_weight(
                shape=(1, 1, config.embed_dim[stage]), initializer=self.init, name="cls_token"
            )
        self.dropout = layers.Dropout(config.drop_rate[stage], **self.part("dropout"))
        depth = config.depth[stage]
        rates = [config.drop_path_rate[stage] * i / max(1, depth - 1) for i in range(depth)]
        self.layers = [
            Block(config, stage, rate, **self.part(f"layers_{i}")) for i, rate in enumerate(rates)
        ]

    def call(self, x: Any, training: bool = False) -> Any:
        """The map before (B, H', W', C) → this stage's map (B, H, W, D), class token (B, 1, D) or
        None, and every block's weights.
        """
        x = self.embedding.convolution_embeddings(x)  # (B, H, W, D)
        B, H, W, _ = ops.shape(x)
        tokens = to_tokens(x)  # (B, H * W, D)
        if self.cls_token is not None:
            cls = ops.cast(ops.broadcast_to(self.cls_token, (B, 1, x.shape[-1])), tokens.dtype)
            tokens = ops.concatenate([cls, tokens], axis=1)  # (B, 1 + H * W, D)
        tokens = self.dropout(tokens, training=training)
        attentions = []
        for block in self.layers:
            # (B, L, D), (B, A, L, L')
            tokens, weights = block(tokens, height=H, width=W, training=training)
            attentions.append(weights)
        if self.cls_token is None:
            return to_map(tokens, H, W), None, attentions
        return to_map(tokens[:, 1:], H, W), tokens[:, :1], attentions


class CvtPreTrainedModel(PreTrainedModel):
    """Base of the CvT networks."""

    config_class = CvtConfig
    base_model_prefix = "cvt"
    heads: ClassVar[tuple[str, ...]] = ("layernorm", "classifier")
    config: CvtConfig

    @classmethod
    def name_table(cls, config: CvtConfig) -> PublishedNames:
        """What published files of the family may hold."""
        return PUBLISHED_NAMES


@keras.saving.register_keras_serializable(package="headstart")
class TFCvtModel(CvtPreTrainedModel):
    """CvT without a head.

    Args:
        config: What the network is.
        *inputs: Accepted for older code.
        **kwargs: Of `keras.Model`: `name`, `dtype`, `trainable`.

    Example:
        >>> import numpy as np
        >>> from headstart import CvtConfig, TFCvtModel
        >>> model = TFCvtModel(CvtConfig(depth=[1, 1, 1]))
        >>> tuple(model(np.zeros((1, 3, 64, 96), "float32")).last_hidden_state.shape)
        (1, 384, 4, 6)
    """

    torch_class = "CvtModel"

    def __init__(self, config: CvtConfig, *inputs: Any, **kwargs: Any) -> None:
        super().__init__(config, **kwargs)
        name = f"{self.name}_encoder"
        stages = [
            Stage(config, i, name=f"{name}_stages_{i}", dtype=self.dtype_policy)
            for i in range(len(config.embed_dim))
        ]
        self.encoder = Named(name, stages=stages)
        self.made()

    def features(self, pixel_values: Any, training: bool) -> tuple[list[Any], Any, list[Any]]:
        """The map of every stage (B, D, H, W), the last stage's class token (B, 1, D), and every
        block's weights.
        """
        if pixel_values is None:
            raise InputError(
                "no pixel_values given; pass a (batch, channels, height, width) tensor, such as an"
                " image processor returns"
            )
        if len(pixel_values.shape) != 4 or pixel_values.shape[1] != self.config.num_channels:
            shape = tuple(pixel_values.shape)
            raise InputError(
                f"pixel_values has shape {shape}; expected (batch, {self.config.num_channels},"
                " height, width)"
            )
        x = ops.transpose(ops.cast(pixel_values, self.compute_dtype), (0, 2, 3, 1))  # (B, H, W, C)
        maps, attentions, cls = [], [], None
        for stage in self.encoder.stages:
            x, cls, weights = stage(x, training=training)  # (B, H, W, D), (B, 1, D)
            maps.append(ops.transpose(x, (0, 3, 1, 2)))  # (B, D, H, W)
            attentions += weights
        return maps, cls, attentions

    def call(
        self,
        pixel_values: Any = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        training: bool = False,
        output_attentions: bool | None = None,
    ) -> Any:
        """Features of images.

        Args:
            pixel_values: (B, C, H, W), or a list, tuple or dict that holds them.
            output_hidden_states: Also return each stage's map.
            return_dict: False gives a tuple.
            training: Whether dropout and batch statistics are on.
            output_attentions: Also return each block's attention weights (B, A, L, L').

        Returns:
            `last_hidden_state` (B, D, H / 16, W / 16), `cls_token_value` (B, 1, D),
            `hidden_states`, `attentions`.
        """
        maps, cls, attentions = self.features(
            self.unpack(pixel_values).get("pixel_values"), training
        )
        hidden = tuple(maps) if self.wants("output_hidden_states", output_hidden_states) else None
        weights = tuple(attentions) if self.wants("output_attentions", output_attentions) else None
        return self.finish(
            TFBaseModelOutputWithCLSToken(maps[-1], cls, hidden, weights), return_dict
        )


@keras.saving.register_keras_serializable(package="headstart")
class TFCvtForImageClassification(CvtPreTrainedModel):
    """CvT with a linear classifier on the class token, or on the mean of the tokens where the last
    stage has none.

    Compiled without a loss, `fit` minimises the network's own: give the labels as `y`, or as
    "labels" among the inputs.

    Args:
        config: What the network is.
        *inputs: Accepted for older code.
        **kwargs: Of `keras.Model`: `name`, `dtype`, `trainable`.

    Example:
        >>> import numpy as np
        >>> from headstart import CvtConfig, TFCvtForImageClassification
        >>> model = TFCvtForImageClassification(CvtConfig(depth=[1, 1, 1], num_labels=5))
        >>> tuple(model(np.zeros((2, 3, 64, 96), "float32")).logits.shape)
        (2, 5)
    """

    torch_class = "CvtForImageClassification"

    def __init__(self, config: CvtConfig, *inputs: Any, **kwargs: Any) -> None:
        super().__init__(config, **kwargs)
        config.check_plain_head()
        D = config.embed_dim[-1]
        self.cvt = TFCvtModel(config, name="cvt", dtype=self.dtype_policy)
        self.layernorm = layers.LayerNormalization(
            epsilon=config.layer_norm_eps, name="layernorm", dtype=self.dtype_policy
        )
        self.layernorm.build((None, None, D))
        # Scores are float32 under mixed precision too.
        self.classifier = layers.Dense(
            config.num_labels,
            kernel_initializer=weight_init(config.initializer_range),
            name="classifier",
            dtype=self.dtype_policy.variable_dtype,
        )
        self.classifier.build((None, D))
        self.made()

    def call(
        self,
        pixel_values: Any = None,
        labels: Any = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        training: bool = False,
        output_attentions: bool | None = None,
    ) -> Any:
        """Scores of the classes.

        Args:
            pixel_values: (B, C, H, W), or a list, tuple or dict that holds them and the labels.
            labels: (B,) integers, (B, V) zeros and ones, or (B,) numbers where `num_labels` is 1.
            output_hidden_states: Also return each stage's map.
            return_dict: False gives a tuple.
            training: Whether dropout and batch statistics are on.
            output_attentions: Also return each block's attention weights (B, A, L, L').

        Returns:
            `loss` (a scalar, with labels), `logits` (B, V), `hidden_states`, and `attentions` where
            asked for.
        """
        given = self.unpack(pixel_values, labels=labels)
        maps, cls, attentions = self.cvt.features(given.get("pixel_values"), training)
        # (B, L, D) or (B, 1, D)
        tokens = to_tokens(ops.transpose(maps[-1], (0, 2, 3, 1))) if cls is None else cls
        logits = self.classifier(ops.mean(self.layernorm(tokens), axis=1))  # (B, V)
        loss = (
            None
            if given.get("labels") is None
            else classification_loss(logits, given["labels"], self.config)
        )
        hidden = tuple(maps) if self.wants("output_hidden_states", output_hidden_states) else None
        if self.wants("output_attentions", output_attentions):
            return self.finish(
                ImageClassifierOutput(loss, logits, hidden, tuple(attentions)), return_dict
            )
        return self.finish(
            TFImageClassifierOutputWithNoAttention(loss, logits, hidden), return_dict
        )


KerasCvtModel = TFCvtModel
KerasCvtForImageClassification = TFCvtForImageClassification
