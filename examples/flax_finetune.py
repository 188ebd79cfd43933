"""Fine-tunes BEiT in JAX/Flax on a folder of photos, with optax and orbax, on every device that JAX
sees.

    python examples/flax_finetune.py DATA/images/hymenoptera OUT --model
    microsoft/beit-base-patch16-224-pt22k-ft22k python examples/flax_finetune.py
    DATA/images/hymenoptera OUT --tiny --epochs 10      # a small network from random weights

The folder holds `train/` and `val/`, each with one folder of images a class. A killed run goes on
from its last checkpoint. OUT/model is read by `FlaxBeitForImageClassification`,
`BeitForImageClassification` and transformers. Needs: pip install 'headstart[flax]' optax
orbax-checkpoint
"""

import argparse
import functools
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from PIL import Image

from headstart import (
    AutoImageProcessor,
    BeitConfig,
    BeitImageProcessor,
    FlaxBeitForImageClassification,
)

TINY = {
    "hidden_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 3,
    "intermediate_size": 384,
    "image_size": 96,
    "patch_size": 16,
    "use_relative_position_bias": True,
}
ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
State = dict[str, Any]  # params, optimizer, step


def read_folder(
    folder: Path, classes: list[str], processor: BeitImageProcessor
) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 3, H, W) as the network wants them, and their classes (N,)."""
    files = [
        (p, i)
        for i, name in enumerate(classes)
        for p in sorted((folder / name).iterdir())
        if p.suffix.lower() in ENDINGS
    ]
    pixels = [
        processor(Image.open(path), return_tensors="np")["pixel_values"][0] for path, _ in files
    ]
    return np.stack(pixels), np.array([label for _, label in files], np.int32)


def batches(
    count: int, size: int, random: np.random.Generator | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows of each batch, and 1 for each that counts.

    The last batch is filled up, so that every one has the same shape.
    """
    order = np.arange(count) if random is None else random.permutation(count)
    for start in range(0, count, size):
        rows = order[start : start + size]
        yield np.resize(rows, size), (np.arange(size) < len(rows)).astype(np.float32)


def make_optimizer(rate: float, steps: int, decay: float) -> optax.GradientTransformation:
    """AdamW with a warm-up over a tenth of the steps and a cosine; only matrices decay."""
    schedule = optax.warmup_cosine_decay_schedule(0.0, rate, max(1, steps // 10), max(2, steps))

    def matrices(params: Any) -> Any:
        return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)

    return optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(schedule, weight_decay=decay, mask=matrices)
    )


def make_steps(
    model: FlaxBeitForImageClassification, optimizer: optax.GradientTransformation, seed: int
) -> tuple[Callable, Callable]:
    """The training step and the evaluation step, compiled."""

    @functools.partial(jax.jit, donate_argnums=0)
    def train(
        state: State, pixels: jax.Array, labels: jax.Array, counts: jax.Array
    ) -> tuple[State, jax.Array]:
        flip_key, drop_key = jax.random.split(
            jax.random.fold_in(jax.random.key(seed), state["step"])
        )
        flip = jax.random.bernoulli(flip_key, 0.5, (len(pixels), 1, 1, 1))
        pixels = jnp.where(flip, pixels[..., ::-1], pixels)  # (B, 3, H, W)

        def loss(params: Any) -> jax.Array:
            logits = model(pixels, params=params, train=True, dropout_rng=drop_key).logits.astype(
                jnp.float32
            )  # (B, V)
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)  # (B,)
            return (losses * counts).sum() / counts.sum()

        value, grads = jax.value_and_grad(loss)(state["params"])
        updates, inner = optimizer.update(grads, state["optimizer"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        return {"params": params, "optimizer": inner, "step": state["step"] + 1}, value

    @jax.jit
    def right(params: Any, pixels: jax.Array, labels: jax.Array, counts: jax.Array) -> jax.Array:
        return ((model(pixels, params=params).logits.argmax(-1) == labels) * counts).sum()

    return train, right


def load(
    arguments: argparse.Namespace, classes: list[str]
) -> tuple[FlaxBeitForImageClassification, BeitImageProcessor]:
    """The network with a head for the classes, and its image processor."""
    names = dict(enumerate(classes))
    dtype = jnp.bfloat16 if arguments.bf16 else jnp.float32
    if not arguments.tiny:
        model = FlaxBeitForImageClassification.from_pretrained(
            arguments.model, dtype=dtype, id2label=names
        )
        return model, AutoImageProcessor.from_pretrained(arguments.model)
    size = {"height": TINY["image_size"], "width": TINY["image_size"]}
    model = FlaxBeitForImageClassification(
        BeitConfig(**TINY, id2label=names), dtype=dtype, seed=arguments.seed
    )
    return model, BeitImageProcessor(size=size, do_center_crop=False)


def parsed() -> argparse.Namespace:
    """The arguments of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", default="microsoft/beit-base-patch16-224-pt22k-ft22k")
    parser.add_argument("--tiny", action="store_true", help="a small network from random weights")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rate", type=float, default=1e-4)
    parser.add_argument("--decay", type=float, default=0.05)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bf16", action="store_true", help="compute in bfloat16")
    return parser.parse_args()


def main() -> None:
    arguments = parsed()

    classes = sorted(p.name for p in (arguments.data / "train").iterdir() if p.is_dir())
    model, processor = load(arguments, classes)
    sets = {
        part: read_folder(arguments.data / part, classes, processor) for part in ("train", "val")
    }
    devices = jax.devices()
    size = -(-arguments.batch // len(devices)) * len(devices)  # every device gets as many
    mesh = Mesh(np.array(devices), ("data",))
    split, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("data",), ()))
    per_epoch = -(-len(sets["train"][1]) // size)
    optimizer = make_optimizer(arguments.rate, per_epoch * arguments.epochs, arguments.decay)
    train, right = make_steps(model, optimizer, arguments.seed)
    state: State = {
        "params": model.params,
        "optimizer": optimizer.init(model.params),
        "step": jnp.zeros((), jnp.int32),
    }
    state = jax.device_put(jax.tree.map(jnp.copy, state), whole)

    def give(part: str, rows: np.ndarray, counts: np.ndarray) -> Any:
        pixels, labels = sets[part]
        return jax.device_put((pixels[rows], labels[rows], counts), split)

    def accuracy(params: Any) -> float:
        return sum(
            float(right(params, *give("val", *each))) for each in batches(len(sets["val"][1]), size)
        ) / len(sets["val"][1])

    with ocp.CheckpointManager(
        (arguments.out / "checkpoints").resolve(),
        options=ocp.CheckpointManagerOptions(max_to_keep=2),
    ) as manager:
        if manager.latest_step() is not None:
            state = manager.restore(manager.latest_step(), args=ocp.args.StandardRestore(state))
        print(
            f"{len(classes)} classes, {model.num_parameters():,} parameters, {len(devices)}"
            f" devices, from step {int(state['step'])}"
        )
        for epoch in range(int(state["step"]) // per_epoch, arguments.epochs):
            start, losses = time.perf_counter(), []
            for rows, counts in batches(
                len(sets["train"][1]), size, np.random.default_rng([arguments.seed, epoch])
            ):
                state, loss = train(state, *give("train", rows, counts))
                losses.append(loss)
            manager.save(int(state["step"]), args=ocp.args.StandardSave(state))
            seconds = time.perf_counter() - start
            print(
                f"epoch {epoch + 1}: loss {np.mean(jax.device_get(losses)):.3f}, accuracy"
                f" {accuracy(state['params']):.3f}, {seconds:.1f} s",
                flush=True,
            )
        manager.wait_until_finished()
    model.save_pretrained(arguments.out / "model", params=state["params"])
    processor.save_pretrained(arguments.out / "model")
    (arguments.out / "result.json").write_text(
        json.dumps({"accuracy": accuracy(state["params"]), "classes": classes}) + "\n"
    )


if __name__ == "__main__":
    main()
