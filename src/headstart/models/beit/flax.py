"""BEiT in JAX/Flax: a vision transformer with relative position bias and layer scale.

Source: Bao et al. 2022, "BEiT: BERT Pre-Training of Image Transformers". The tree of parameters is
that of the published `flax_model.msgpack` files.

Shapes: B images, C channels, H W height and width, h w patches from top to bottom and from left to
right, L = 1 + h * w tokens (the class token first), D hidden size, A heads, K = D // A, V classes
or visual codes.

The wrappers take images (B, C, H, W), as every class here does; the modules take (B, H, W, C), as
Flax does.
"""

from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from typing import Any, ClassVar

import numpy as np

from headstart.checkpoint.names import PublishedNames
from headstart.errors import InputError
from headstart.models.beit.config import BeitConfig
from headstart.models.beit.positions import (
    relative_position_index,
    resize_positions,
    resize_table,
    table_matrices,
    table_rows,
)
from headstart.models.beit.weights import PUBLISHED_NAMES, fit_positions
from headstart.nn.flax import PreTrainedModel, activation, check_mesh, check_pixels
from headstart.outputs import (
    FlaxBeitModelOutputWithPooling,
    FlaxMaskedLMOutput,
    FlaxSequenceClassifierOutput,
    ModelOutput,
)

# isort: split
import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import PartitionSpec

zeros = nn.initializers.zeros
Grid = tuple[int, int]  # patches from top to bottom and from left to right


class Named(nn.Module):
    """Modules under the names that the published checkpoints give them."""

    makers: tuple[tuple[str, Callable[..., Any]], ...]

    def setup(self) -> None:
        """Makes the modules."""
        self.parts = {name: make(name=name) for name, make in self.makers}

    def __getitem__(self, name: str) -> Any:
        return self.parts[name]


def named(**makers: Callable[..., Any]) -> Named:
    """A `Named` of modules that these functions make, given `name=`."""
    return Named(tuple(makers.items()))


def linear(
    features: int, config: BeitConfig, dtype: Any, shrink: float = 1.0, bias: bool = True
) -> Callable[..., Any]:
    """Makes a linear layer.

    Its initial weights are normal (the authors truncate at ±2, a hundred standard deviations away).
    """
    init = nn.initializers.normal(config.initializer_range * shrink)
    return partial(nn.Dense, features, use_bias=bias, dtype=dtype, kernel_init=init)


def layer_norm(config: BeitConfig, dtype: Any) -> Any:
    """LayerNorm. Its variance is E[x²] - E[x]² in float32, Flax's default.

    A training step is a tenth faster than with E[(x - E[x])²].
    """
    return nn.LayerNorm(config.layer_norm_eps, dtype=dtype)


@lru_cache(8)
def fit_matrices(old: Grid, new: Grid, method: str, by_width: bool) -> tuple[Any, Any]:
    """What fits a bias table to another grid; see `resize_table`."""
    return table_matrices(np, old, new, method, by_width)


class Patches(nn.Module):
    """The patches of an image through a linear layer.

    A convolution whose stride is its size, as the one matrix product that it is.
    """

    config: BeitConfig
    dtype: Any = jnp.float32

    def setup(self) -> None:
        """Makes the parameters."""
        c = self.config
        self.kernel = self.param(
            "kernel",
            nn.initializers.normal(c.initializer_range),
            (*c.patch, c.num_channels, c.hidden_size),
        )
        self.bias = self.param("bias", zeros, (c.hidden_size,))

    def __call__(self, x: Any, grid: Grid) -> Any:
        """Images (B, H, W, C) → (B, h * w, D).

        What is left over below and on the right is not seen.
        """
        B, (height, width), (p, q), C = x.shape[0], grid, self.config.patch, x.shape[-1]
        x = (
            x[:, : height * p, : width * q]
            .reshape(B, height, p, width, q, C)
            .transpose(0, 1, 3, 2, 4, 5)
        )  # (B, h, w, p, q, C)
        kernel = self.kernel.astype(self.dtype).reshape(p * q * C, -1)
        x = x.astype(self.dtype).reshape(B, height * width, p * q * C) @ kernel  # (B, h * w, D)
        return x + self.bias.astype(self.dtype)[None, None]


class RelativeBias(nn.Module):
    """A learned bias of attention scores by relative position, one for each head."""

    config: BeitConfig
    dtype: Any = jnp.float32

    def setup(self) -> None:
        """Makes the parameter."""
        shape = (table_rows(*self.config.grid), self.config.num_attention_heads)
        self.table = self.param("relative_position_bias_table", zeros, shape)

    def __call__(self, grid: Grid) -> Any:
        """The bias (1, A, L, L) that is added to the scores."""
        c, table = self.config, self.table  # (rows, A)
        if c.bias_by_width or grid != c.grid:
            table = resize_table(
                jnp, table, *fit_matrices(c.grid, grid, c.bias_resize, c.bias_by_width)
            )
        rows = relative_position_index(np, *grid)  # (L, L)
        return table.astype(self.dtype).T[None, :, rows]  # (1, A, L, L)


class Attention(nn.Module):
    """Self-attention. Queries and values have a bias, keys have none, as in the authors' code."""

    config: BeitConfig
    number: int
    dtype: Any = jnp.float32

    def setup(self) -> None:
        """Makes the layers."""
        c, D = self.config, self.config.hidden_size
        parts = {
            "query": linear(D, c, self.dtype),
            "key": linear(D, c, self.dtype, bias=False),
            "value": linear(D, c, self.dtype),
        }
        if c.use_relative_position_bias:
            parts["relative_position_bias"] = partial(RelativeBias, c, self.dtype)
        self.attention = named(**parts)
        # The authors divide the last matrices of the two branches so that depth does not add up at
        # the start.
        self.output = named(dense=linear(D, c, self.dtype, shrink=(2 * (self.number + 1)) ** -0.5))
        self.dropout = nn.Dropout(c.attention_probs_dropout_prob)

    def heads(self, x: Any) -> tuple[Any, Any, Any]:
        """Queries, keys and values of x (B, L, D), each (B, A, L, K)."""
        B, L, _ = x.shape
        A = self.config.num_attention_heads
        q, k, v = (
            self.attention[name](x).reshape(B, L, A, -1).transpose(0, 2, 1, 3)
            for name in ("query", "key", "value")
        )  # 3 × (B, A, L, K)
        return q, k, v

    def score_bias(self, grid: Grid, shared: Any = None) -> Any:
        """What is added to the scores, (1, A, L, L), or None."""
        if not self.config.use_relative_position_bias:
            return shared
        own = self.attention["relative_position_bias"](grid)
        return own if shared is None else own + shared

    def softmax(self, q: Any, k: Any, bias: Any) -> Any:
        """The attention weights (B, A, L, L) of queries and keys (B, A, L, K), before dropout.

        The softmax is float32.
        """
        # jax.nn.dot_product_attention does the same sums (without cuDNN, which is never its
        # default), and is slower on a CPU (JAX 0.10).
        exact = jnp.promote_types(q.dtype, jnp.float32)
        q = q * jnp.asarray(q.shape[-1] ** -0.5, q.dtype)
        scores = jnp.einsum("baqk,balk->baql", q, k, preferred_element_type=exact)  # (B, A, L, L)
        return jax.nn.softmax(scores if bias is None else scores + bias).astype(q.dtype)

    def __call__(
        self,
        x: Any,
        grid: Grid,
        shared: Any = None,
        head_mask: Any = None,
        deterministic: bool = True,
    ) -> tuple[Any, Any]:
        """Mixes the tokens x (B, L, D).

        Args:
            x: (B, L, D).
            grid: Height and width of the grid of patches.
            shared: Bias of all blocks, (1, A, L, L).
            head_mask: (A,), 0 silences a head.
            deterministic: Whether nothing is dropped.

        Returns:
            (B, L, D); the attention weights (B, A, L, L) after the softmax, before dropout.
        """
        q, k, v = self.heads(x)  # 3 × (B, A, L, K)
        weights = self.softmax(q, k, self.score_bias(grid, shared))  # (B, A, L, L)
        if head_mask is not None:
            weights = weights * head_mask[None, :, None, None]
        y = self.dropout(weights, deterministic=deterministic) @ v  # (B, A, L, K)
        y = y.transpose(0, 2, 1, 3).reshape(x.shape)  # (B, L, D)
        return self.output["dense"](y), weights


class Block(nn.Module):
    """Pre-norm block; the learned vectors `lambda_1` and `lambda_2` scale its two branches."""

    config: BeitConfig
    number: int
    drop_path_rate: float
    dtype: Any = jnp.float32

    def setup(self) -> None:
        """Makes the layers."""
        c, D, dtype = self.config, self.config.hidden_size, self.dtype
        shrink = (2 * (self.number + 1)) ** -0.5  # see Attention
        self.attention = Attention(c, self.number, dtype)
        self.intermediate = named(dense=linear(c.intermediate_size, c, dtype))
        self.output = named(dense=linear(D, c, dtype, shrink=shrink))
        self.layernorm_before = layer_norm(c, dtype)
        self.layernorm_after = layer_norm(c, dtype)
        self.act = activation(c.hidden_act)
        self.lambda_1, self.lambda_2 = None, None
        if c.layer_scale_init_value > 0:
            scale = nn.initializers.constant(c.layer_scale_init_value)
            self.lambda_1 = self.param("lambda_1", scale, (D,))
            self.lambda_2 = self.param("lambda_2", scale, (D,))
        self.dropout = nn.Dropout(c.hidden_dropout_prob)
        # Stochastic depth: the whole branch of an image is dropped or kept (Huang et al. 2016).
        self.drop_path = nn.Dropout(self.drop_path_rate, broadcast_dims=(1, 2))

    def add(self, x: Any, branch: Any, scale: Any, deterministic: bool) -> Any:
        """x plus the scaled branch, both (B, L, D)."""
        branch = self.dropout(branch, deterministic=deterministic)
        if scale is not None:
            branch = scale.astype(self.dtype)[None, None] * branch
        return x + self.drop_path(branch, deterministic=deterministic)

    def mlp(self, x: Any) -> Any:
        """x (B, L, D), the same shape."""
        return self.output["dense"](self.act(self.intermediate["dense"](x)))

    def __call__(
        self,
        x: Any,
        grid: Grid,
        shared: Any = None,
        head_mask: Any = None,
        deterministic: bool = True,
    ) -> tuple[Any, Any]:
        """x (B, L, D), the same shape, and the attention weights; see `Attention.__call__`."""
        y, weights = self.attention(
            self.layernorm_before(x), grid, shared, head_mask, deterministic
        )  # (B, L, D)
        x = self.add(x, y, self.lambda_1, deterministic)
        return self.add(x, self.mlp(self.layernorm_after(x)), self.lambda_2, deterministic), weights


class Embeddings(nn.Module):
    """Tokens of images: the class token, patches or the mask token, and their positions."""

    config: BeitConfig
    dtype: Any = jnp.float32

    def setup(self) -> None:
        """Makes the parameters."""
        c, D = self.config, self.config.hidden_size
        init = nn.initializers.normal(c.initializer_range)
        self.cls_token = self.param("cls_token", init, (1, 1, D))
        self.mask_token = self.param("mask_token", init, (1, 1, D)) if c.use_mask_token else None
        self.patch_embeddings = named(projection=partial(Patches, c, self.dtype))
        self.position_embeddings = None
        if c.use_absolute_position_embeddings:
            shape = (1, 1 + c.grid[0] * c.grid[1], D)
            self.position_embeddings = self.param("position_embeddings", init, shape)
        self.dropout = nn.Dropout(c.hidden_dropout_prob)

    def masked(self, x: Any, mask: Any) -> Any:
        """Patches x (B, N, D), replaced by the mask token where the mask (B, N) is true.

        Raises:
            InputError: No mask token, or a mask of another shape.
        """
        if self.mask_token is None:
            raise InputError(
                "bool_masked_pos is given, but the network has no mask token; set"
                " use_mask_token=True in its configuration"
            )
        mask = jnp.asarray(mask)
        if mask.ndim < 2 or mask.shape[0] != x.shape[0] or mask.size != x.shape[0] * x.shape[1]:
            raise InputError(
                f"bool_masked_pos has shape {mask.shape}; expected {x.shape[:2]}, one for each"
                " patch"
            )
        hidden = mask.reshape(*x.shape[:2], 1).astype(bool)  # (B, N, 1)
        return jnp.where(hidden, self.mask_token.astype(self.dtype), x)

    def __call__(
        self, pixel_values: Any, bool_masked_pos: Any, deterministic: bool
    ) -> tuple[Any, Grid]:
        """Tokens (B, L, D) of images (B, H, W, C), and the grid of patches."""
        c, dtype = self.config, self.dtype
        B, H, W, _ = pixel_values.shape
        grid = (H // c.patch[0], W // c.patch[1])
        if min(grid) < 1:
            raise InputError(
                f"images of {(H, W)} are smaller than one patch of {c.patch}; give larger ones"
            )
        x = self.patch_embeddings["projection"](pixel_values, grid)  # (B, h * w, D)
        if bool_masked_pos is not None:
            x = self.masked(x, bool_masked_pos)
        token = jnp.broadcast_to(self.cls_token.astype(dtype), (B, 1, c.hidden_size))
        x = jnp.concatenate([token, x], 1)  # (B, L, D)
        positions = self.position_embeddings
        if positions is not None and grid != c.grid:
            positions = resize_positions(jnp, positions, c.grid, grid, of_matrices=np)
        if positions is not None:
            x = x + positions.astype(dtype)
        return self.dropout(x, deterministic=deterministic), grid


class Layers(nn.Module):
    """The blocks, under their numbers."""

    config: BeitConfig
    dtype: Any = jnp.float32
    gradient_checkpointing: bool = False

    def setup(self) -> None:
        """Makes the blocks."""
        c = self.config
        # The grid and whether to drop are known when the program is traced.
        block = nn.remat(Block, static_argnums=(2, 5)) if self.gradient_checkpointing else Block
        step = c.drop_path_rate / max(1, c.num_hidden_layers - 1)
        self.blocks = [
            block(c, i, step * i, self.dtype, name=str(i)) for i in range(c.num_hidden_layers)
        ]


class Pooler(nn.Module):
    """One vector per image: the normalized mean of the patches, or the class token."""

    config: BeitConfig
    dtype: Any = jnp.float32

    def setup(self) -> None:
        """Makes the layers."""
        norm = self.config.use_mean_pooling
        self.layernorm = layer_norm(self.config, self.dtype) if norm else None

    def __call__(self, x: Any) -> Any:
        """x (B, L, D) → (B, D)."""
        return x[:, 0] if self.layernorm is None else self.layernorm(x[:, 1:].mean(1))


class BeitModule(nn.Module):
    """BEiT without a head: embeddings, blocks, and the pooler.

    Args:
        config: The network's shape.
        dtype: Type to compute in; parameters are float32.
        add_pooling_layer: Whether there is a pooler.
        add_norm: Whether the tokens are normalized at the end; None follows the configuration.
        gradient_checkpointing: Whether blocks are computed again in the backward pass.
    """

    config: BeitConfig
    dtype: Any = jnp.float32
    add_pooling_layer: bool = True
    add_norm: bool | None = None
    gradient_checkpointing: bool = False

    def setup(self) -> None:
        """Makes the layers."""
        c = self.config
        self.embeddings = Embeddings(c, self.dtype)
        parts: dict[str, Any] = {
            "layer": partial(Layers, c, self.dtype, self.gradient_checkpointing)
        }
        if c.use_shared_relative_position_bias:
            parts["relative_position_bias"] = partial(RelativeBias, c, self.dtype)
        self.encoder = named(**parts)
        wanted = not c.use_mean_pooling if self.add_norm is None else self.add_norm
        self.layernorm = layer_norm(c, self.dtype) if wanted else None
        self.pooler = Pooler(c, self.dtype) if self.add_pooling_layer else None

    def __call__(
        self,
        pixel_values: Any,
        bool_masked_pos: Any = None,
        deterministic: bool = True,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
        head_mask: Any = None,
    ) -> FlaxBeitModelOutputWithPooling:
        """Hidden states of images (B, H, W, C); see `FlaxBeitModel.__call__`."""
        x, grid = self.embeddings(pixel_values, bool_masked_pos, deterministic)
        shared = None
        if self.config.use_shared_relative_position_bias:
            shared = self.encoder["relative_position_bias"](grid)  # (1, A, L, L)
        masks = expand_head_mask(head_mask, self.config, self.dtype)
        states, attentions = [x], []
        for block, mask in zip(self.encoder["layer"].blocks, masks, strict=True):
            x, weights = block(x, grid, shared, mask, deterministic)
            states.append(x)
            if output_attentions:
                attentions.append(weights)
        last = x if self.layernorm is None else self.layernorm(x)  # (B, L, D)
        pooled = None if self.pooler is None else self.pooler(last)  # (B, D)
        hidden = tuple(states) if output_hidden_states else None
        return FlaxBeitModelOutputWithPooling(
            last, pooled, hidden, tuple(attentions) if output_attentions else None
        )


def expand_head_mask(mask: Any, config: BeitConfig, dtype: Any) -> list[Any]:
    """A mask (A,) for each block, from (A,) or (blocks, A).

    Raises:
        InputError: Another shape.
    """
    depth, A = config.num_hidden_layers, config.num_attention_heads
    if mask is None:
        return [None] * depth
    mask = jnp.asarray(mask, dtype)
    if mask.shape not in ((A,), (depth, A)):
        raise InputError(
            f"head_mask has shape {mask.shape}; expected ({A},) or ({depth}, {A}): one number a"
            " head"
        )
    return [mask if mask.ndim == 1 else mask[i] for i in range(depth)]


class BeitForMaskedImageModelingModule(nn.Module):
    """BEiT that predicts the visual codes of masked patches."""

    config: BeitConfig
    dtype: Any = jnp.float32
    gradient_checkpointing: bool = False

    def setup(self) -> None:
        """Makes the layers."""
        c = self.config
        self.beit = BeitModule(
            c, self.dtype, False, None if c.norm_twice else False, self.gradient_checkpointing
        )
        self.layernorm = layer_norm(c, self.dtype)
        self.lm_head = linear(c.vocab_size, c, self.dtype)()

    def __call__(
        self, pixel_values: Any, bool_masked_pos: Any = None, *args: Any, **kwargs: Any
    ) -> FlaxMaskedLMOutput:
        """Scores of the visual codes of every patch; arguments as of `BeitModule.__call__`."""
        out = self.beit(pixel_values, bool_masked_pos, *args, **kwargs)
        logits = self.lm_head(self.layernorm(out.last_hidden_state[:, 1:]))  # (B, patches, V)
        return FlaxMaskedLMOutput(None, logits, out.hidden_states, out.attentions)


class BeitForImageClassificationModule(nn.Module):
    """BEiT with a linear classifier on the pooled vector."""

    config: BeitConfig
    dtype: Any = jnp.float32
    gradient_checkpointing: bool = False

    def setup(self) -> None:
        """Makes the layers."""
        c = self.config
        c.check_plain_head()
        self.beit = BeitModule(c, self.dtype, gradient_checkpointing=self.gradient_checkpointing)
        self.classifier = linear(c.num_labels, c, self.dtype)() if c.num_labels else None

    def __call__(
        self, pixel_values: Any, bool_masked_pos: Any = None, *args: Any, **kwargs: Any
    ) -> FlaxSequenceClassifierOutput:
        """Scores of the classes; see `BeitModule.__call__` for the arguments."""
        out = self.beit(pixel_values, bool_masked_pos, *args, **kwargs)
        logits = (
            out.pooler_output if self.classifier is None else self.classifier(out.pooler_output)
        )  # (B, V)
        return FlaxSequenceClassifierOutput(None, logits, out.hidden_states, out.attentions)


class FlaxBeitPreTrainedModel(PreTrainedModel):
    """Base of the BEiT networks in Flax: a module, its parameters, and how they are called.

    Args:
        config: The network's shape.
        input_shape: Of the images that parameters are made with, (B, H, W, C); parameters do not
            depend on B, H and W.
        seed: Of the initial parameters.
        dtype: Type to compute in: float32, bfloat16 (TPUs, GPUs) or float16 (GPUs). New parameters
            are float32 all the same.
        _do_init: False makes no parameters: they are given to every call.
        **module_options: `gradient_checkpointing=True`, and for `FlaxBeitModel`
            `add_pooling_layer=False`.

    Example:
        >>> from headstart import FlaxBeitModel, FlaxBeitPreTrainedModel
        >>> issubclass(FlaxBeitModel, FlaxBeitPreTrainedModel)
        True
        >>> FlaxBeitPreTrainedModel.base_model_prefix
        'beit'
    """

    config_class = BeitConfig
    base_model_prefix = "beit"
    heads: ClassVar[tuple[str, ...]] = (
        *("pooler", "beit.pooler", "layernorm", "beit.layernorm"),
        *("embeddings.mask_token", "beit.embeddings.mask_token", "classifier", "lm_head"),
    )
    config: BeitConfig

    @classmethod
    def name_table(cls, config: BeitConfig) -> PublishedNames:
        """Published names."""
        return PUBLISHED_NAMES

    @classmethod
    def fit(cls, tensors: Mapping[str, Any], config: BeitConfig) -> Mapping[str, Any]:
        """Fits tables and positions of another resolution."""
        return fit_positions(tensors, config, config.saved_grid)

    def default_shape(self) -> tuple[int, ...]:
        """One image of the configuration's size, (1, H, W, C)."""
        return (1, *self.config.image, self.config.num_channels)

    def __call__(
        self,
        pixel_values: Any,
        bool_masked_pos: Any = None,
        params: Mapping[str, Any] | None = None,
        dropout_rng: Any = None,
        train: bool = False,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        head_mask: Any = None,
    ) -> Any:
        """Runs the network; may be called inside `jit`, `grad` and `vmap`.

        Args:
            pixel_values: (B, C, H, W), as `BeitImageProcessor` gives them; of any size.
            bool_masked_pos: (B, patches), True (or 1) where a patch is masked.
            params: Parameters to use instead of those that the network holds.
            dropout_rng: A key, for `train=True`.
            train: Whether dropout and stochastic depth are on.
            output_attentions: Also return the attention weights.
            output_hidden_states: Also return the embeddings and the output of each block.
            return_dict: False gives a tuple.
            head_mask: (A,) or (blocks, A), 0 silences a head.

        Returns:
            `FlaxBeitModel`: `last_hidden_state` (B, L, D), `pooler_output` (B, D). With a head:
            `logits`, (B, V) of images or (B, patches, V) of patches. All: `hidden_states`,
            `attentions`.

        Raises:
            InputError: An argument of another shape or type, or `train=True` without the key that
                it needs.
        """
        c = self.config
        if (
            train
            and dropout_rng is None
            and (c.drop_path_rate or c.hidden_dropout_prob or c.attention_probs_dropout_prob)
        ):
            raise InputError(
                "train=True needs random numbers; pass dropout_rng=jax.random.key(…), another one"
                " each step"
            )
        params = self.params if params is None else params
        pixel_values = jnp.asarray(pixel_values) if pixel_values is not None else None
        check_mesh(pixel_values, params)
        out: ModelOutput = self.module.apply(
            {"params": params},
            check_pixels(pixel_values, c.num_channels),  # (B, H, W, C)
            bool_masked_pos,
            not train,
            self.wants("output_attentions", output_attentions),
            self.wants("output_hidden_states", output_hidden_states),
            head_mask,
            rngs={} if dropout_rng is None else {"dropout": dropout_rng},
        )
        return self.finish(out, return_dict)

    def partition_specs(self, axis: str = "model") -> dict[str, Any]:
        """How to lay the parameters over an axis of a mesh: heads, and the width of the MLP, are
        divided (Shoeybi et al. 2019).

        Args:
            axis: The mesh's axis; its size must divide the number of heads, and
                `intermediate_size`.

        Returns:
            A tree like the parameters', of `jax.sharding.PartitionSpec`.
        """
        specs = {}
        for path in flatten_dict(self.params_shape_tree):
            divided: tuple[bool, ...] = DIVIDED.get(path[-3:], DIVIDED.get(path[-2:], ()))
            specs[path] = PartitionSpec(*(axis if each else None for each in divided))
        return unflatten_dict(specs)


# The last two or three names of a parameter → which of its axes are divided. The others are whole
# on every device.
DIVIDED: dict[tuple[str, ...], tuple[bool, ...]] = {
    ("query", "kernel"): (False, True),  # (D, A * K)
    ("query", "bias"): (True,),
    ("key", "kernel"): (False, True),
    ("value", "kernel"): (False, True),
    ("value", "bias"): (True,),
    ("relative_position_bias", "relative_position_bias_table"): (False, True),  # (rows, A)
    ("intermediate", "dense", "kernel"): (False, True),
    ("intermediate", "dense", "bias"): (True,),
    ("output", "dense", "kernel"): (True, False),  # of the attention and of the MLP
}


class FlaxBeitModel(FlaxBeitPreTrainedModel):
    """BEiT without a head; see `FlaxBeitPreTrainedModel` for the arguments.

    Example:
        >>> import numpy as np
        >>> from headstart import BeitConfig, FlaxBeitModel
        >>> config = BeitConfig(
        ...     hidden_size=32,
        ...     num_hidden_layers=2,
        ...     num_attention_heads=2,
        ...     intermediate_size=64,
        ...     image_size=32,
        ... )
        >>> FlaxBeitModel(config)(np.zeros((1, 3, 32, 48), np.float32)).last_hidden_state.shape
        (1, 7, 32)
    """

    module_class = BeitModule
    torch_class = "BeitModel"


class FlaxBeitForMaskedImageModeling(FlaxBeitPreTrainedModel):
    """BEiT that predicts the visual codes of masked patches.

    See `FlaxBeitPreTrainedModel` for the arguments.

    Example:
        >>> import numpy as np
        >>> from headstart import BeitConfig, FlaxBeitForMaskedImageModeling
        >>> config = BeitConfig(
        ...     hidden_size=32,
        ...     num_hidden_layers=2,
        ...     num_attention_heads=2,
        ...     intermediate_size=64,
        ...     image_size=32,
        ...     vocab_size=64,
        ...     use_mask_token=True,
        ... )
        >>> model = FlaxBeitForMaskedImageModeling(config)
        >>> mask = np.array([[True, False, True, False]])  # 2 × 2 patches of 16 pixels
        >>> model(np.zeros((1, 3, 32, 32), np.float32), bool_masked_pos=mask).logits.shape
        (1, 4, 64)
    """

    module_class = BeitForMaskedImageModelingModule
    torch_class = "BeitForMaskedImageModeling"


class FlaxBeitForImageClassification(FlaxBeitPreTrainedModel):
    """BEiT with a linear classifier on the pooled vector.

    See `FlaxBeitPreTrainedModel` for the arguments.

    Example:
        >>> import numpy as np
        >>> from headstart import BeitConfig, FlaxBeitForImageClassification
        >>> config = BeitConfig(
        ...     hidden_size=32,
        ...     num_hidden_layers=2,
        ...     num_attention_heads=2,
        ...     intermediate_size=64,
        ...     image_size=32,
        ...     num_labels=5,
        ... )
        >>> model = FlaxBeitForImageClassification(config)
        >>> model(np.zeros((2, 3, 32, 32), np.float32)).logits.shape
        (2, 5)
    """

    module_class = BeitForImageClassificationModule
    torch_class = "BeitForImageClassification"
