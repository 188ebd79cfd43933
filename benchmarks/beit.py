"""How fast is eager BEiT-base beside transformers and timm? Forward at batch 1 and 8, a training
step, and segmentation at 640 pixels.

python benchmarks/beit.py            # all
python benchmarks/beit.py forward    # one part
"""

import sys

import timm
import torch
import transformers
from timing import interleaved, peak_gflops, report

import headstart

GFLOP = 35.1  # of one image of 224x224
BASE = {"use_relative_position_bias": True, "layer_norm_eps": 1e-6, "drop_path_rate": 0.0}
Models = dict[str, torch.nn.Module]
Rows = dict[str, dict[str, list[float]]]


def contenders() -> Models:
    """The same network three times, with the same weights where the names allow it."""
    torch.manual_seed(0)
    peer = transformers.BeitForImageClassification(
        transformers.BeitConfig(num_labels=1000, **BASE)
    ).eval()
    ours = headstart.BeitForImageClassification(
        headstart.BeitConfig(num_labels=1000, **BASE)
    ).eval()
    ours.load_state_dict(peer.state_dict())
    return {
        "transformers": peer,
        "timm": timm.create_model("beit_base_patch16_224").eval(),
        "headstart": ours,
    }


def logits(model: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    out = model(x)
    return out if isinstance(out, torch.Tensor) else out.logits


def compare(models: Models, x: torch.Tensor) -> None:
    difference = (
        (logits(models["headstart"], x) - logits(models["transformers"], x)).abs().max().item()
    )
    print(f"{tuple(x.shape)}: logits differ from transformers' by {difference:.1e}")


def forward() -> Rows:
    rows, models = {}, contenders()
    with torch.no_grad():
        for batch in (1, 8):
            x = torch.randn(batch, 3, 224, 224)
            compare(models, x)
            rows[f"forward, batch {batch}"] = interleaved(
                {n: lambda m=m, x=x: logits(m, x) for n, m in models.items()}, 15.0 * batch**0.5
            )
    return rows


def training() -> Rows:
    rows, models = {}, contenders()
    x, y = torch.randn(8, 3, 224, 224), torch.randint(0, 1000, (8,))

    def step(model: torch.nn.Module, mixed: bool) -> None:
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            loss = torch.nn.functional.cross_entropy(logits(model, x), y)
        loss.backward()

    for model in models.values():
        model.train()
    kinds = {
        f"{name}{' bf16 autocast' * mixed}": (m, mixed)
        for name, m in models.items()
        for mixed in (False, True)
    }
    rows["training step, batch 8"] = interleaved(
        {n: lambda k=k: step(*k) for n, k in kinds.items()}, 60.0, 3
    )
    return rows


def segmentation() -> Rows:
    values = BASE | {"image_size": 640, "num_labels": 150, "out_indices": [3, 5, 7, 11]}
    torch.manual_seed(0)
    peer = transformers.BeitForSemanticSegmentation(transformers.BeitConfig(**values)).eval()
    # transformers reads two blocks earlier (the embeddings' state counts); `same blocks` reads
    # those, and stops there.
    makers = {"headstart": {}, "headstart, same blocks": {"pyramid_blocks": [1, 3, 5, 9]}}
    models: Models = {"transformers": peer}
    for name, more in makers.items():
        models[name] = headstart.BeitForSemanticSegmentation(
            headstart.BeitConfig(**values, **more)
        ).eval()
        models[name].load_state_dict(peer.state_dict())
    x = torch.randn(1, 3, 640, 640)
    with torch.no_grad():
        compare({"transformers": peer, "headstart": models["headstart, same blocks"]}, x)
        return {
            "segmentation 640, batch 1": interleaved(
                {n: lambda m=m: logits(m, x) for n, m in models.items()}, 60.0, 3
            )
        }


if __name__ == "__main__":
    torch.set_num_threads(2)
    parts = {"forward": forward, "training": training, "segmentation": segmentation}
    rows = {key: value for name in (sys.argv[1:] or parts) for key, value in parts[name]().items()}
    print(f"arithmetic floor of one image of 224x224: {GFLOP / peak_gflops() * 1e3:.0f} ms")
    report("BEiT-base, eager", rows, "transformers", "beit")
