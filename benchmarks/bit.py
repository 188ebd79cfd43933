"""How fast is eager BiT-50 beside transformers and timm? Forward at batch 1 and 8, a training step,
and loading.

python benchmarks/bit.py            # all
python benchmarks/bit.py forward    # one part
"""

import sys
import tempfile
from functools import partial
from pathlib import Path

import timm
import torch
import transformers
from timing import interleaved, peak_gflops, report

import headstart

GFLOP = 8.2  # of one image of 224x224


def contenders() -> dict[str, torch.nn.Module]:
    """The same network three times, with the same weights where the names allow it."""
    torch.manual_seed(0)
    peer = transformers.BitForImageClassification(transformers.BitConfig(num_labels=1000)).eval()
    ours = headstart.BitForImageClassification(
        headstart.BitConfig(num_labels=1000, conv_eps=1e-8)
    ).eval()
    ours.load_state_dict(peer.state_dict())
    return {
        "transformers": peer,
        "timm": timm.create_model("resnetv2_50x1_bit").eval(),
        "headstart": ours,
    }


def logits(model: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    out = model(x)
    return out if isinstance(out, torch.Tensor) else out.logits


def forward(models: dict[str, torch.nn.Module]) -> dict[str, dict[str, list[float]]]:
    rows = {}
    with torch.no_grad():
        for batch in (1, 8):
            x = torch.randn(batch, 3, 224, 224)
            difference = (
                (logits(models["headstart"], x) - logits(models["transformers"], x))
                .abs()
                .max()
                .item()
            )
            print(f"batch {batch}: logits differ from transformers' by {difference:.1e}")
            rows[f"forward, batch {batch}"] = interleaved(
                {n: partial(logits, m, x) for n, m in models.items()}, 12.0 * batch**0.5
            )
    return rows


def training(models: dict[str, torch.nn.Module]) -> dict[str, dict[str, list[float]]]:
    x, y = torch.randn(8, 3, 224, 224), torch.randint(0, 1000, (8,))

    def step(model: torch.nn.Module) -> None:
        model.zero_grad()
        torch.nn.functional.cross_entropy(logits(model, x), y).backward()

    for model in models.values():
        model.train()
    return {
        "training step, batch 8": interleaved(
            {n: lambda m=m: step(m) for n, m in models.items()}, 30.0, 3
        )
    }


def loading(models: dict[str, torch.nn.Module]) -> dict[str, dict[str, list[float]]]:
    with tempfile.TemporaryDirectory() as folder:
        models["transformers"].save_pretrained(folder)
        size = (Path(folder) / "model.safetensors").stat().st_size / 1e6
        loaders = {
            "transformers": lambda: transformers.BitForImageClassification.from_pretrained(folder),
            "headstart": lambda: headstart.BitForImageClassification.from_pretrained(folder),
        }
        return {f"loading {size:.0f} MB": interleaved(loaders, 5.0)}


if __name__ == "__main__":
    torch.set_num_threads(2)
    models = contenders()
    parts = {"forward": forward, "training": training, "loading": loading}
    rows = {
        key: value for name in (sys.argv[1:] or parts) for key, value in parts[name](models).items()
    }
    floor = GFLOP / peak_gflops() * 1e3
    print(f"arithmetic floor of one image: {floor:.0f} ms")
    report("BiT-50, eager, float32", rows, "transformers", "bit")
