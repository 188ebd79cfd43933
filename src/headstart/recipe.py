"""Recipes: every value that decides how a model is tuned, as plain data.

A recipe is resolved from four layers, each overriding the one before: the defaults of `Recipe`, the
recipe of the model's family (a function of what was found in the data), a YAML file, the command
line. The resolved recipe is saved beside the result.
"""

import dataclasses
import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from headstart.checkpoint.documents import check_kind, parse_yaml, read_yaml
from headstart.errors import ConfigError


@dataclass(frozen=True)
class Facts:
    """What a recipe may depend on: the size and shape of the data, and the size of image the model
    was made for.

    Args:
        examples: Training examples.
        classes: Classes (0 where the task has none).
        height: Median height of the images in pixels (0 where there are none).
        width: Median width.
        model_image_size: Side of the images that the model's own processor makes, where that is
            known.
        task: Name of the task.
        config: The model's configuration, where it is known.
    """

    examples: int
    classes: int = 0
    height: int = 0
    width: int = 0
    model_image_size: int | None = None
    task: str = "image-classification"
    config: Any = None


@dataclass(frozen=True)
class Recipe:
    """How a model is tuned.

    Args:
        name: Where the values come from.
        tune: "full" trains every weight, "head" fits only the last layer on features that are
            computed once.
        optimizer: "sgd" (with `momentum`) or "adamw" (with `betas`).
        lr: Learning rate after the warm-up.
        weight_decay: Applied to matrices and convolutions, not to biases and norms.
        layer_decay: The learning rate of each layer is this times that of the layer above it.
        clip_grad: Largest allowed norm of the gradient; None leaves it as it is.
        schedule: "staircase" multiplies by `decay_factor` after each step in `decay_at`; "cosine"
            and "poly" (`power`) go down to `final_lr`; "constant" stays.
        steps: Updates of the weights.
        warmup_steps: Steps over which the learning rate rises linearly from `warmup_lr` to `lr`.
        batch_size: Examples in one update. A smaller data set is sampled with replacement to fill
            it.
        micro_batch: Examples in one forward pass; the gradient is that of the whole batch. None
            finds one that fits.
        resize: Side in pixels that training images are resized to before they are cropped.
        crop: Side in pixels of what the network sees.
        max_length: Tokens of the longest text; None keeps the tokenizer's limit.
        augment: "crop-flip" resizes, crops at random and mirrors; "resized-crop" crops a random
            part of 0.5 to 1 of the area; "flip" only mirrors; "none" resizes to the crop size.
        mixup: The a of MixUp's Beta(a, a), one draw a batch; 0 is off.
        cutmix: The same of CutMix; where both are on, each batch is mixed by one of them.
        mix_fraction: Proportion of the steps, from the first, whose batches are mixed.
        rand_augment: Magnitude of RandAugment, 0 to 10; 0 is off.
        color_jitter: Largest change of brightness, contrast and saturation, as a fraction; 0 is
            off, and RandAugment takes its place.
        erasing: Chance that a random rectangle of an image becomes noise.
        label_smoothing: Fraction of the label spread over all classes.
        class_weights: What the classes count in the loss: "none" counts all examples the same,
            "balanced" makes up for rare classes; or a weight for each class, by name or in order.
        drop_path: Rate of stochastic depth; None keeps the model's own.
        zero_head: Whether the new head starts at zero.
        freeze: Beginnings of the names of parameters that stay as they are.
        unfreeze: Beginnings of the names of parameters that are trained although `freeze` names
            them; without `freeze`, everything else but a new head stays as it is.
        lora_rank: Rank of LoRA's matrices, which are then trained in place of the weights they are
            added to; None is off.
        lora_alpha: LoRA's change is multiplied by this over the rank; None is twice the rank.
        lora_targets: Last parts of the names of layers that get LoRA; empty takes the family's.
        lora_dropout: Fraction of a layer's inputs that LoRA's matrices do not see.
        gradient_checkpointing: Whether each block is computed again in the backward pass, for less
            memory and more time.
        ema: Decay of an average of the weights, which becomes the result; None is off.
        precision: "fp32", or "bf16" or "fp16" (with scaled gradients) for the network's arithmetic
            with float32 weights.
        seed: Decides order, augmentation, dropout and splits.
        eval_every: Steps between evaluations along the way, of at least 1,000 and at most as many
            validation examples as take a fifth of the time; None makes about ten.
        checkpoint_every: Steps between checkpoints; None makes about twenty.
    """

    name: str = "default"
    tune: Literal["full", "head"] = "full"
    optimizer: Literal["sgd", "adamw"] = "adamw"
    lr: float = 1e-4
    momentum: float = 0.9
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    layer_decay: float = 1.0
    clip_grad: float | None = None
    schedule: Literal["staircase", "cosine", "poly", "constant"] = "cosine"
    steps: int = 500
    warmup_steps: int = 0
    warmup_lr: float = 0.0
    decay_at: tuple[int, ...] = ()
    decay_factor: float = 0.1
    final_lr: float = 0.0
    power: float = 1.0
    batch_size: int = 64
    micro_batch: int | None = None
    resize: int | None = None
    crop: int | None = None
    max_length: int | None = None
    augment: Literal["crop-flip", "resized-crop", "flip", "none"] = "crop-flip"
    mixup: float = 0.0
    cutmix: float = 0.0
    mix_fraction: float = 1.0
    rand_augment: float = 0.0
    color_jitter: float = 0.0
    erasing: float = 0.0
    label_smoothing: float = 0.0
    class_weights: Literal["none", "balanced"] | dict[str, float] | tuple[float, ...] = "none"
    drop_path: float | None = None
    zero_head: bool = True
    freeze: tuple[str, ...] = ()
    unfreeze: tuple[str, ...] = ()
    lora_rank: int | None = None
    lora_alpha: float | None = None
    lora_targets: tuple[str, ...] = ()
    lora_dropout: float = 0.0
    gradient_checkpointing: bool = False
    ema: float | None = None
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    seed: int = 0
    eval_every: int | None = None
    checkpoint_every: int | None = None

    def __post_init__(self) -> None:
        for field, kind in _FIELD_TYPES.items():
            check_kind(getattr(self, field), kind, f"recipe: {field}", ConfigError)
        for field in (
            "steps",
            "batch_size",
            "micro_batch",
            "resize",
            "crop",
            "max_length",
            "eval_every",
            "checkpoint_every",
            "lora_rank",
        ):
            value = getattr(self, field)
            if value is not None and value < 1:
                raise ConfigError(f"recipe: {field}={value}; it must be at least 1")
        for field in (
            "lr",
            "weight_decay",
            "warmup_steps",
            "warmup_lr",
            "final_lr",
            "mixup",
            "cutmix",
            "seed",
        ):
            if not 0 <= getattr(self, field) < math.inf:
                raise ConfigError(
                    f"recipe: {field}={getattr(self, field)}; it must be finite and not negative"
                )
        for field in ("momentum", "label_smoothing", "drop_path", "ema", "lora_dropout"):
            value = getattr(self, field)
            if value is not None and not 0 <= value < 1:
                raise ConfigError(f"recipe: {field}={value}; it must be at least 0 and below 1")
        for field, most in (
            ("rand_augment", 10),
            ("color_jitter", 1),
            ("erasing", 1),
            ("mix_fraction", 1),
        ):
            if not 0 <= getattr(self, field) <= most:
                raise ConfigError(
                    f"recipe: {field}={getattr(self, field)}; it must be from 0 to {most}"
                )
        self._check_factors()
        self._check_together()

    def _check_factors(self) -> None:
        """Raises ConfigError for a factor that is not above 0."""
        weights = (
            self.class_weights.values()
            if isinstance(self.class_weights, dict)
            else self.class_weights
        )
        if not isinstance(weights, str) and not all(0 < weight < math.inf for weight in weights):
            raise ConfigError(
                f"recipe: class_weights={self.class_weights!r}; every weight must be finite and"
                " above 0"
            )
        if not 0 < self.layer_decay <= 1:
            raise ConfigError(
                f"recipe: layer_decay={self.layer_decay}; it must be above 0 and at most 1"
            )
        for field in ("clip_grad", "lora_alpha"):
            value = getattr(self, field)
            if value is not None and not 0 < value < math.inf:
                raise ConfigError(f"recipe: {field}={value}; it must be above 0")

    def _check_together(self) -> None:
        """Raises ConfigError for values that exclude each other."""
        if self.lora_rank is not None and self.tune == "head":
            raise ConfigError(
                "recipe: tune='head' trains no weight below the head, so lora_rank has nothing to"
                " change"
            )
        if self.resize and self.crop and self.resize < self.crop:
            raise ConfigError(
                f"recipe: resize={self.resize} is smaller than crop={self.crop}; a crop cannot be"
                " larger than its image"
            )

    @property
    def mixes(self) -> bool:
        """Whether examples of a batch are mixed with each other."""
        return self.mixup > 0 or self.cutmix > 0

    def lr_at(self, step: int) -> float | None:
        """Learning rate of update `step` = 0, 1, 2, …; None when training is over.

        A decay takes effect one step after its boundary and the first warm-up step has rate
        `warmup_lr`, as in google-research/big_transfer's `bit_hyperrule.py`.
        """
        if step >= self.steps:
            return None
        if step < self.warmup_steps:
            return self.warmup_lr + (self.lr - self.warmup_lr) * step / self.warmup_steps
        if self.schedule == "staircase":
            return self.lr * self.decay_factor ** sum(boundary < step for boundary in self.decay_at)
        progress = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        shapes = {
            "cosine": (1 + math.cos(math.pi * progress)) / 2,
            "poly": float((1 - progress) ** self.power),
            "constant": 1.0,
        }
        left: float = shapes[self.schedule]
        return self.final_lr + (self.lr - self.final_lr) * left

    def with_steps(self, steps: int) -> "Recipe":
        """The same recipe over another number of steps, with warm-up and decays in proportion."""

        def scaled(step: int) -> int:
            return round(step * steps / self.steps)

        return replace(
            self,
            steps=steps,
            warmup_steps=scaled(self.warmup_steps),
            decay_at=tuple(scaled(step) for step in self.decay_at),
        )

    def head_only(self) -> "Recipe":
        """The same recipe for the head alone.

        Fixed features gain little from large images, and their cost is all the cost there is.
        """
        crop = None if self.max_length or self.name == "text" else self.crop or HEAD_SIDE
        return replace(self, tune="head", resize=None, crop=crop and min(crop, HEAD_SIDE))

    def updated(self, values: Mapping[str, Any], source: str = "recipe") -> "Recipe":
        """The recipe with some values replaced. Changing only `steps` keeps warm-up and decays in
        proportion.

        Args:
            values: Values by name.
            source: How an error names the layer, for example the YAML file.
        """
        given: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
        }
        if isinstance(given.get("precision"), str):
            given["precision"] = PRECISIONS.get(given["precision"], given["precision"])
        for key in given:
            if key not in _FIELD_TYPES:
                near = difflib.get_close_matches(key, _FIELD_TYPES, n=3)
                hint = (
                    f"; did you mean {' or '.join(near)}?"
                    if near
                    else f"; known values: {', '.join(_FIELD_TYPES)}"
                )
                raise ConfigError(f"{source}: a recipe has no value {key!r}{hint}")
        if isinstance(given.get("class_weights"), dict):
            given["class_weights"] = {
                str(name): weight for name, weight in given["class_weights"].items()
            }
        try:
            steps = given.get("steps")
            if (
                isinstance(steps, int)
                and steps > 0
                and not {"warmup_steps", "decay_at"} & given.keys()
            ):
                return replace(self.with_steps(given.pop("steps")), **given)
            return replace(self, **given)
        except ConfigError as error:
            raise ConfigError(f"{source}: {str(error).removeprefix('recipe: ')}") from None

    def relevant(self) -> dict[str, Any]:
        """The values that have an effect: those of a head alone are few."""
        values = self.to_dict()
        return values if self.tune == "full" else {key: values[key] for key in HEAD_VALUES}

    def to_dict(self) -> dict[str, Any]:
        """The values as JSON knows them."""
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in dataclasses.asdict(self).items()
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: str = "recipe") -> "Recipe":
        """A recipe from what `to_dict` gave."""
        return cls().updated({"warmup_steps": 0, **values}, source)


HEAD_SIDE = 224  # pixels
HEAD_VALUES = ("name", "tune", "crop", "max_length", "class_weights", "seed")
# times the best rate of full tuning, whatever network and rank (Schulman et al. 2025, "LoRA Without
# Regret")
LORA_RATE = 10.0
# torch's names are understood too
PRECISIONS = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
_FIELD_TYPES: dict[str, Any] = {f.name: f.type for f in fields(Recipe)}


def hyper_rule(facts: Facts) -> Recipe:
    """BiT-HyperRule (Big Transfer, section 3.3): everything follows from the number of examples and
    the area of the images.

    Source of the numbers: google-research/big_transfer, `bit_hyperrule.py`.
    """
    if facts.examples < 20_000:
        warmup, decays, steps = 100, (200, 300, 400), 500
    elif facts.examples < 500_000:
        warmup, decays, steps = 500, (3_000, 6_000, 9_000), 10_000
    else:
        warmup, decays, steps = 500, (6_000, 12_000, 18_000), 20_000
    resize, crop = hyper_rule_resolution(facts.height, facts.width)
    # made for smaller images than any published BiT
    if facts.model_image_size is not None and facts.model_image_size <= 160:
        resize, crop = round(facts.model_image_size * 1.125), facts.model_image_size
    return Recipe(
        name="hyperrule",
        optimizer="sgd",
        lr=0.003,
        momentum=0.9,
        schedule="staircase",
        steps=steps,
        warmup_steps=warmup,
        decay_at=decays,
        batch_size=512,
        mixup=0.0 if facts.examples < 20_000 else 0.1,
        resize=resize,
        crop=crop,
        augment="crop-flip",
    )


def hyper_rule_resolution(height: int, width: int) -> tuple[int, int]:
    """Sides that images are resized and then cropped to."""
    return (160, 128) if height * width < 96 * 96 else (512, 480)


def finetune(facts: Facts) -> Recipe:
    """A careful AdamW recipe for a pretrained transformer: small rate, layer-wise decay, cosine
    over about 30 epochs.

    The rate and decay are between those of BEiT's base and large models in their authors'
    fine-tuning from ImageNet-22k.
    """
    batch_size = 64
    steps = min(10_000, max(200, round(30 * facts.examples / batch_size)))
    crop = facts.model_image_size
    return Recipe(
        name="finetune",
        optimizer="adamw",
        lr=1e-4,
        weight_decay=0.05,
        layer_decay=0.85,
        clip_grad=1.0,
        schedule="cosine",
        steps=steps,
        warmup_steps=steps // 10,
        final_lr=1e-6,
        batch_size=batch_size,
        label_smoothing=0.1,
        augment="resized-crop",
        resize=crop and round(crop * 1.15),
        crop=crop,
    )


def text(facts: Facts) -> Recipe:
    """Fine-tuning of a text encoder as BERT's and RoBERTa's authors do it.

    AdamW at a small rate, warm-up, then down to 0 in a line.
    """
    steps = min(20_000, max(100, round(5 * facts.examples / 32)))
    return Recipe(
        name="text",
        optimizer="adamw",
        lr=5e-5,
        weight_decay=0.01,
        clip_grad=1.0,
        schedule="poly",
        power=1.0,
        steps=steps,
        warmup_steps=steps // 10,
        batch_size=32,
        augment="none",
        zero_head=False,
    )


def distill(facts: Facts) -> Recipe:
    """Function matching (Beyer et al. 2021): many epochs, random crops, MixUp in any proportion.

    MixUp ends before the last fifth of the steps: networks that end with it have worse frozen
    features (Kornblith et al. 2021).
    """
    batch_size = 128
    steps = max(1_000, round(100 * facts.examples / batch_size))
    crop = facts.model_image_size
    return Recipe(
        name="distill",
        optimizer="adamw",
        lr=1e-3,
        weight_decay=0.02,
        clip_grad=5.0,
        schedule="cosine",
        steps=steps,
        warmup_steps=steps // 20,
        batch_size=batch_size,
        mixup=1.0,
        mix_fraction=0.8,
        augment="resized-crop",
        resize=crop and round(crop * 1.15),
        crop=crop,
        zero_head=False,
    )


def distill_texts(facts: Facts) -> Recipe:
    """Distillation of texts: AdamW, about ten passes, and texts of up to 128 tokens."""
    batch_size = 64
    steps = max(1_000, round(10 * facts.examples / batch_size))
    return Recipe(
        name="distill-texts",
        optimizer="adamw",
        lr=5e-4,
        weight_decay=0.01,
        clip_grad=1.0,
        schedule="cosine",
        steps=steps,
        warmup_steps=steps // 20,
        batch_size=batch_size,
        max_length=128,
        augment="none",
        zero_head=False,
    )


RECIPES: dict[str, Callable[[Facts], Recipe]] = {
    "hyperrule": hyper_rule,
    "finetune": finetune,
    "text": text,
    "distill": distill,
    "distill-texts": distill_texts,
}


def named_recipe(name: str, facts: Facts) -> Recipe:
    """The recipe of that name for this data."""
    if name not in RECIPES:
        raise ConfigError(f"no recipe is called {name!r}; there are {', '.join(RECIPES)}")
    return RECIPES[name](facts)


def read_recipe_file(path: str | Path) -> dict[str, Any]:
    """The values of a YAML (or JSON) recipe file; `recipe.

    NAME` there chooses the recipe that they change.
    """
    values = read_yaml(path, ConfigError)
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected lines of the form `name: value`")
    return values


def read_class_weights(text: str) -> Any:
    """Class weights as the command line gives them: none, balanced, a YAML or JSON file, or its
    text: {cat: 2} or [1, 2].

    Raises:
        ConfigError: None of these.
    """
    where = f"--class-weights {text:.80}"
    value = read_yaml(text, ConfigError) if _is_file(text) else parse_yaml(text, where, ConfigError)
    if value is None or isinstance(value, str) and value not in ("none", "balanced"):
        raise ConfigError(
            f"--class-weights {text}: expected none, balanced, a YAML or JSON file that exists, or"
            " {cat: 2, dog: 1}"
        )
    return value


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except (OSError, ValueError):  # too long for a name, or a NUL in it
        return False


def resolve_recipe(
    base: Recipe, file: str | Path | None = None, overrides: Mapping[str, Any] | None = None
) -> Recipe:
    """The family's recipe, then the file's values, then the command line's, where None is an option
    that was not given.

    LoRA's learning rate, where neither gives one, is `LORA_RATE` times that of the family's recipe,
    which is for tuning every weight.
    """
    recipe, values = base, dict[str, Any]()
    if file is not None:
        values = read_recipe_file(file)
        values.pop("recipe", None)
        recipe = recipe.updated(values, str(file))
    given = {key: value for key, value in (overrides or {}).items() if value is not None}
    if (
        isinstance(given.get("crop"), int)
        and "resize" not in given
        and recipe.crop
        and recipe.resize
    ):
        # another crop keeps the border around it in proportion
        given["resize"] = round(recipe.resize * given["crop"] / recipe.crop)
    recipe = recipe.updated(given, "options")
    if recipe.lora_rank is not None and "lr" not in values | given:
        recipe = replace(recipe, lr=LORA_RATE * recipe.lr)
    return recipe
