"""How BEiT's authors tune and pretrain it, as data, and how that becomes a recipe for a data set of
another size.

Source of the numbers: microsoft/unilm, `beit/` (get_started_for_image_classification.md, README.md,
semantic_segmentation/configs).
"""

import math
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from headstart.recipe import Facts, Recipe

Size = Literal["base", "large"]
FEW = 20_000  # examples: below, an update sees a small batch, and there are few updates
SMALL_BATCH, FEWEST_STEPS = 64, 200
# Ours, not the paper's: with few updates the published rates (for a thousand classes and 75,000
# updates) would leave a new head as it is.
LEAST_RATE = {
    "image-classification": 5e-5,
    "semantic-segmentation": 2e-4,
    "masked-image-modeling": 5e-4,
}


@dataclass(frozen=True)
class Paper:
    """A published setting.

    Args:
        batch: Examples in one update.
        lr: Rate at that batch.
        epochs: Passes over the data; 0 where the paper counts `steps`.
        warmup_epochs: Passes over which the learning rate rises.
        steps: Updates, where they are counted.
        warmup_steps: Updates over which the learning rate rises, where they are counted.
        values: Further values of the recipe.
    """

    batch: int
    lr: float
    epochs: int = 0
    warmup_epochs: float = 0
    steps: int = 0
    warmup_steps: int = 0
    values: dict[str, Any] = field(default_factory=dict)


STRONG: dict[str, Any] = {
    "weight_decay": 0.05, "mixup": 0.8, "cutmix": 1.0, "label_smoothing": 0.1, "rand_augment": 9.0,
    "erasing": 0.25, "color_jitter": 0.4,
    "augment": "resized-crop", "warmup_lr": 1e-6, "final_lr": 1e-6,
}  # fmt: skip
GENTLE: dict[str, Any] = {
    "weight_decay": 1e-8, "label_smoothing": 0.1, "rand_augment": 9.0, "erasing": 0.25,
    "color_jitter": 0.4, "augment": "resized-crop",
    "warmup_lr": 1e-6, "final_lr": 1e-6,
}  # fmt: skip
MASKED: dict[str, Any] = {
    "weight_decay": 0.05, "clip_grad": 3.0, "drop_path": 0.1, "label_smoothing": 0.0,
    "augment": "resized-crop", "warmup_lr": 1e-6,
    "final_lr": 1e-5,
}  # fmt: skip
PIXELS: dict[str, Any] = {
    "weight_decay": 0.05, "schedule": "poly", "power": 1.0, "warmup_lr": 1e-6,
    "augment": "crop-flip", "label_smoothing": 0.0,
}  # fmt: skip

# From a network that only masked image modelling trained, and from one that was tuned to
# ImageNet-22k.
PAPER: dict[tuple[str, str, Size], Paper] = {
    ("image-classification", "pretrained", "base"): Paper(
        1024, 4e-3, 100, 20, values=STRONG | {"layer_decay": 0.65, "drop_path": 0.1}
    ),
    ("image-classification", "pretrained", "large"): Paper(
        1024, 1e-3, 50, 5, values=STRONG | {"layer_decay": 0.75, "drop_path": 0.2}
    ),
    ("image-classification", "tuned", "base"): Paper(
        512, 2e-5, 30, 5, values=GENTLE | {"layer_decay": 0.85, "drop_path": 0.1}
    ),
    ("image-classification", "tuned", "large"): Paper(
        512, 2e-5, 30, 5, values=GENTLE | {"layer_decay": 0.9, "drop_path": 0.4}
    ),
    ("semantic-segmentation", "tuned", "base"): Paper(
        16,
        3e-5,
        steps=160_000,
        warmup_steps=1_500,
        values=PIXELS | {"layer_decay": 0.9, "drop_path": 0.1},
    ),
    ("semantic-segmentation", "tuned", "large"): Paper(
        16,
        2e-5,
        steps=160_000,
        warmup_steps=1_500,
        values=PIXELS | {"layer_decay": 0.95, "drop_path": 0.2},
    ),
    # 10,000 updates of warm-up: 1.44 of 150 passes over ImageNet-22k's 14.2 million images.
    ("masked-image-modeling", "pretrained", "base"): Paper(2048, 1.5e-3, 150, 1.44, values=MASKED),
    ("masked-image-modeling", "pretrained", "large"): Paper(2048, 1.5e-3, 150, 1.44, values=MASKED),
}


def size_of(config: Any) -> Size:
    """Which of the two published sizes a network is nearest to."""
    return "large" if getattr(config, "num_hidden_layers", 12) > 12 else "base"


def start_of(config: Any) -> str:
    """What a network has learned: "pretrained" with masks alone, or "tuned" to classes too."""
    named = (getattr(config, "architectures", None) or [""])[0]
    masks = named == "BeitForMaskedImageModeling" or (
        not named and getattr(config, "use_mask_token", False)
    )
    return "pretrained" if masks else "tuned"


def paper_recipe(task: str, start: str, size: Size) -> Paper:
    """The published setting for a task; where there is none for that start, the one there is."""
    return PAPER.get((task, start, size)) or next(
        paper for (name, _, of), paper in PAPER.items() if name == task and of == size
    )


def recipe(facts: Facts) -> Recipe:
    """The paper's recipe for this task and network, fitted to the number of examples.

    With 20,000 examples or more: the paper's batch, rate and epochs. With fewer: batches of 64 (16
    for segmentation), the rate in proportion to the batch but not below `LEAST_RATE`, and at least
    200 updates.
    """
    task = facts.task if facts.task in LEAST_RATE else "image-classification"
    start, size = start_of(facts.config), size_of(facts.config)
    paper = paper_recipe(task, start, size)
    batch, lr = paper.batch, paper.lr
    if facts.examples < FEW:
        batch = min(paper.batch, SMALL_BATCH)
        lr = max(LEAST_RATE[task], paper.lr * batch / paper.batch)
    if paper.epochs:
        steps = max(FEWEST_STEPS, math.ceil(paper.epochs * facts.examples / batch))
        warmup = round(steps * paper.warmup_epochs / paper.epochs)
    else:
        # The paper's 160,000 updates of 16 are 127 passes over ADE20k's 20,210 images.
        steps = max(
            FEWEST_STEPS, min(paper.steps, math.ceil(paper.steps * facts.examples / 20_210))
        )
        warmup = round(
            steps * max(paper.warmup_steps / paper.steps, 0.0 if steps == paper.steps else 0.05)
        )
    base = Recipe(
        name=f"beit-{task}-{start}-{size}", optimizer="adamw", schedule="cosine",
        betas=(0.9, 0.999), batch_size=batch, lr=lr, steps=steps,
        warmup_steps=warmup,
    )  # fmt: skip
    return replace(base, **paper.values)
