"""How CvT's authors tune it to other data, as data, and how that becomes a recipe for a data set of
another size.

Source: Wu et al. 2021, section 4.1, "Fine-tuning": ViT's way of tuning (Dosovitskiy et al. 2021,
    appendix B.1.1), that is SGD with
momentum 0.9, batches of 512, a cosine, no weight decay and gradients clipped at norm 1, at 384
pixels: 20,000 updates for ImageNet-1k, 10,000 for CIFAR-10 and CIFAR-100, 500 for Oxford Pets and
    Flowers-102.
"""

from dataclasses import replace
from typing import Any

from headstart.recipe import Facts, Recipe, hyper_rule

SIDE = 384  # pixels the paper tunes at, also networks that were pretrained at 224
RATES = (0.001, 0.003, 0.01, 0.03)  # what ViT's authors try for a data set; CvT's name none
PAPER: dict[str, Any] = {
    "optimizer": "sgd", "momentum": 0.9, "lr": 0.01, "schedule": "cosine", "batch_size": 512,
    "clip_grad": 1.0, "weight_decay": 0.0,
}  # fmt: skip


def recipe(facts: Facts) -> Recipe:
    """The paper's recipe for this many examples.

    The updates (500, 10,000 or 20,000) and their warm-up are those of BiT-HyperRule, which names
    the same numbers for the same data sets. A network that was made for images smaller than the
    published ones (224) keeps its own size.
    """
    own = facts.model_image_size
    crop = own if own is not None and own < 224 else max(SIDE, own or SIDE)
    resize = round(crop * 7 / 6)  # 448 for 384
    return replace(
        hyper_rule(facts), name="cvt", mixup=0.0, decay_at=(), resize=resize, crop=crop, **PAPER
    )
