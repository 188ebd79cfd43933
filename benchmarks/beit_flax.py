"""How fast is BEiT in Flax beside the original Flax class of transformers 4.57.6? Forward pass and
training step, compiled, one process.

    python benchmarks/beit_flax.py            # BEiT-base at 224
    python benchmarks/beit_flax.py small      # a small network, for a busy machine

Needs transformers 4.57.6 beside headstart, without PyTorch's help: its Flax classes run on current
JAX.
"""

import sys
import tempfile
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import transformers
from timing import interleaved, report

import headstart

SIZES = {
    "base": {
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
    },
    "small": {
        "hidden_size": 384,
        "num_hidden_layers": 4,
        "num_attention_heads": 6,
        "intermediate_size": 1536,
    },
}
COMMON = {
    "use_relative_position_bias": True,
    "num_labels": 1000,
    "layer_norm_eps": 1e-6,
    "drop_path_rate": 0.1,
}


def contenders(size: str) -> dict[str, Any]:
    """The same network twice, with the same weights."""
    peer = transformers.FlaxBeitForImageClassification(
        transformers.BeitConfig(**SIZES[size], **COMMON)
    )
    with tempfile.TemporaryDirectory() as folder:
        peer.save_pretrained(folder)
        ours = headstart.FlaxBeitForImageClassification.from_pretrained(folder)
    return {"transformers": peer, "headstart": ours}


def forward(model: Any) -> Callable[[Any], Any]:
    run = jax.jit(lambda params, pixels: model(pixels, params=params).logits)
    return lambda pixels: run(model.params, pixels).block_until_ready()


def training(model: Any, pixels: Any, labels: Any) -> Callable[[], Any]:
    """A step of plain gradient descent with stochastic depth."""

    def loss(params: Any, key: Any) -> Any:
        logits = model(pixels, params=params, train=True, dropout_rng=key).logits
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    @jax.jit
    def step(params: Any, key: Any) -> Any:
        value, grads = jax.value_and_grad(loss)(params, key)
        return jax.tree.map(lambda p, g: p - 1e-3 * g, params, grads), value

    key = jax.random.PRNGKey(0)
    return lambda: jax.block_until_ready(step(model.params, key))


if __name__ == "__main__":
    size = (sys.argv[1:] or ["base"])[0]
    models, rows = contenders(size), {}
    for batch in (1, 8):
        pixels = np.random.default_rng(0).standard_normal((batch, 3, 224, 224), np.float32)
        runs = {name: forward(model) for name, model in models.items()}
        difference = float(jnp.abs(runs["headstart"](pixels) - runs["transformers"](pixels)).max())
        print(f"batch {batch}: logits differ by {difference:.1e}", flush=True)
        rows[f"forward, batch {batch}"] = interleaved(
            {name: lambda run=run, pixels=pixels: run(pixels) for name, run in runs.items()},
            10.0 * batch**0.5,
        )
    labels = np.arange(8) % 1000
    rows["training step, batch 8"] = interleaved(
        {name: training(model, pixels, labels) for name, model in models.items()}, 30.0
    )
    report(f"BEiT-{size}, Flax, jit, float32", rows, "transformers", f"beit_flax_{size}")
