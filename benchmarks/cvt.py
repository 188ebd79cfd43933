"""How fast is CvT-13 beside transformers? Eager forward at batch 1 and 8, a training step, and the
Keras model under XLA.

python benchmarks/cvt.py                    # forward and training
python benchmarks/cvt.py forward            # one part
python benchmarks/cvt.py forward --busy     # one thread, its own processor time: for a machine that
does other work as well python benchmarks/cvt.py keras              # beside transformers'
TensorFlow class (transformers 4, tensorflow, tf-keras)
"""

import functools
import os
import sys
import time

import torch
import transformers
from timing import interleaved, report

import headstart

BUSY = "--busy" in sys.argv
measured = functools.partial(interleaved, clock=time.process_time) if BUSY else interleaved
NAMES = {"transformers": "transformers", "headstart": "headstart", "quick": "headstart, QuickGELU"}


def contenders() -> dict[str, torch.nn.Module]:
    """The same network with the same weights, and ours once more with the activation of the
    published weights.
    """
    torch.manual_seed(0)
    peer = transformers.CvtForImageClassification(transformers.CvtConfig(num_labels=1000)).eval()
    models = {NAMES["transformers"]: peer}
    for name, act in ((NAMES["headstart"], "gelu"), (NAMES["quick"], "quick_gelu")):
        config = headstart.CvtConfig(num_labels=1000, layer_norm_eps=1e-5, hidden_act=act)
        models[name] = headstart.CvtForImageClassification(config).eval()
        models[name].load_state_dict(peer.state_dict())
    return models


def forward() -> dict[str, dict[str, list[float]]]:
    models, rows = contenders(), {}
    with torch.no_grad():
        for batch in (1, 8):
            x = torch.randn(batch, 3, 224, 224)
            difference = (
                (models["headstart"](x).logits - models["transformers"](x).logits)
                .abs()
                .max()
                .item()
            )
            print(f"batch {batch}: logits differ from transformers' by {difference:.1e}")
            rows[f"forward, batch {batch}"] = measured(
                {n: lambda m=m, x=x: m(x) for n, m in models.items()}, 10.0 * batch**0.5
            )
    return rows


def training() -> dict[str, dict[str, list[float]]]:
    models = contenders()
    x, y = torch.randn(8, 3, 224, 224), torch.randint(0, 1000, (8,))

    def step(model: torch.nn.Module) -> None:
        model.zero_grad()
        model(x, labels=y).loss.backward()

    for model in models.values():
        model.train()
    return {
        "training step, batch 8": measured(
            {n: lambda m=m: step(m) for n, m in models.items()}, 30.0, 3
        )
    }


def keras() -> dict[str, dict[str, list[float]]]:
    """Both compiled whole by XLA on TensorFlow."""
    os.environ["KERAS_BACKEND"] = "tensorflow"
    import tempfile

    import numpy as np
    import tensorflow as tf

    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        contenders()["transformers"].save_pretrained(folder)
        config = transformers.CvtConfig.from_pretrained(folder)
        config.image_size = 224  # which that class wants and CvtConfig lacks
        peer = transformers.TFCvtForImageClassification.from_pretrained(
            folder, config=config, from_pt=True
        )
        ours = headstart.TFCvtForImageClassification.from_pretrained(folder)
        runs = {
            "transformers, TensorFlow": tf.function(
                lambda x: peer(x, training=False).logits, jit_compile=True
            ),
            "headstart, Keras 3": tf.function(
                lambda x: ours(x, training=False).logits, jit_compile=True
            ),
        }
        for batch in (1, 8):
            x = tf.constant(
                np.random.default_rng(0).normal(size=(batch, 3, 224, 224)).astype("float32")
            )
            first, second = (run(x).numpy() for run in runs.values())
            print(
                f"batch {batch}: logits differ from transformers' by"
                f" {np.abs(first - second).max():.1e}"
            )
            calls = {n: lambda run=run, x=x: run(x).numpy() for n, run in runs.items()}
            rows[f"XLA forward, batch {batch}"] = measured(calls, 10.0 * batch**0.5)
    return rows


if __name__ == "__main__":
    torch.set_num_threads(1 if BUSY else 2)
    parts = {"forward": forward, "training": training, "keras": keras}
    chosen = [each for each in sys.argv[1:] if each != "--busy"] or ["forward", "training"]
    for part in chosen:
        baseline = "transformers, TensorFlow" if part == "keras" else "transformers"
        report(
            f"CvT-13, {part}, float32{', processor time of one thread' if BUSY else ''}",
            parts[part](),
            baseline,
            f"cvt_{part}",
        )
