"""A training loop of a few steps."""

import torch

from headstart.data.options import DataOptions
from headstart.recipe import Recipe
from headstart.tasks.image_classification import ImageClassification, head_of

SMALL = Recipe(
    optimizer="sgd",
    lr=0.05,
    schedule="constant",
    steps=4,
    batch_size=10,
    micro_batch=10,
    resize=24,
    crop=20,
    seed=3,
)


def ready(photos, tiny_model, recipe):
    task = ImageClassification.read(photos, DataOptions())
    torch.manual_seed(1)
    model = task.build(str(tiny_model), recipe)
    torch.nn.init.normal_(head_of(model).weight)  # a zero head would hide what reaches the body
    task.prepare(None)
    return task, model
