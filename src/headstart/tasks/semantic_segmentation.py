"""Semantic segmentation: a class for every pixel.

Letters: B images, H W sides of an image, S side of what the network sees in training, V classes, N
    images of a split.
"""

import hashlib
import heapq
import json
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from headstart.auto import AutoConfig, AutoImageProcessor, AutoModelForSemanticSegmentation
from headstart.checkpoint import atomic_write
from headstart.data.cache import Bad, check_bad, decode, parallel
from headstart.data.mask_augment import SCALES, random_colors, random_crop
from headstart.data.masks import (
    IGNORED,
    Scan,
    SegmentationData,
    name_classes,
    read_pairs,
    read_values,
    scan,
)
from headstart.data.options import SPLITS, DataOptions
from headstart.errors import ConfigError, InputError, counted, listed
from headstart.images.decode import BILINEAR
from headstart.metrics.classification import MATRIX_CLASSES
from headstart.metrics.segmentation import (
    bootstrap_interval,
    class_scores,
    mean_iou,
    pixel_confusion,
    segmentation_metrics,
)
from headstart.pipelines.semantic_segmentation import class_colors, segment
from headstart.recipe import Facts, Recipe
from headstart.tasks.base import Evaluation
from headstart.tasks.image import ImageTask

CLASSES = "classes.json"
# bytes of decoded images of a split that stay in memory; larger splits are decoded each time
MEMORY = 1 << 30
WORST, OTHERS = 4, 4  # images whose predictions the report shows

Pair = tuple[NDArray[np.uint8], NDArray[np.uint8]]


class SemanticSegmentation(ImageTask):
    """A class for every pixel: images and masks, see `headstart.data.masks.read_pairs`.

    Options of `DataOptions.extra`: "masks" (their folder), "classes" (a JSON file), "reduce_labels"
    (mask value 0 is not a class), "mode" of prediction ("slide" or "whole").
    """

    name: ClassVar[str] = "semantic-segmentation"
    prediction_columns: ClassVar[tuple[str, ...]] = ("mean_iou", "pixel_accuracy")
    column_roles: ClassVar[tuple[str, ...]] = ("image", "mask", "split", "group")
    option_names: ClassVar[tuple[str, ...]] = ("classes", "masks", "mode", "reduce_labels")
    unreadable: ClassVar[str] = "unusable pairs"
    headline: ClassVar[str] = "mean_iou"

    def __init__(self, data: SegmentationData, options: DataOptions) -> None:
        super().__init__(data.splits, data.notes, options)
        self.classes = data.classes
        self.classes.reduce |= bool(options.extra.get("reduce_labels"))
        self.scans: dict[str, list[Scan | None]] = {}
        total = sum(self.splits.values())
        with options.progress.counting("reading masks", total, self.unit) as seen:
            for split, pairs in data.splits.items():
                results = scan(pairs, self.classes.colors, options.workers, seen)
                self.scans[split] = [each if isinstance(each, Scan) else None for each in results]
                for index, each in enumerate(results):
                    if isinstance(each, str):
                        self.bad.append(Bad(split, index, pairs.names[index], each))
                known = self.scans[split]
                self.digests_of[split] = [each.digest if each else "" for each in known]
                sizes = [(each.height, each.width) if each else (0, 0) for each in known]
                self.sizes[split] = np.array(sizes, dtype=np.int64).reshape(-1, 2)
        found = [each for scans in self.scans.values() for each in scans if each]
        if not found:
            check_bad(self.bad, False, sum(self.splits.values()))
        self.notes += name_classes(self.classes, {value for each in found for value in each.counts})
        self.decoded: dict[str, list[Pair] | None] = {}
        self.colors: NDArray[np.uint8] = np.zeros((0, 3), np.uint8)

    @classmethod
    def read(cls, path: str | Path, options: DataOptions) -> Self:
        """See `Task.read`. Masks are read here already, for they hold the classes."""
        with options.progress.counting("reading pairs", 1, "data sets"):
            pairs = read_pairs(path, options)
        return cls(pairs, options)

    @property
    def fingerprint(self) -> str:
        """See `Task.fingerprint`: of classes, and of content and split of every pair."""
        meaning = [self.classes.names, sorted(self.classes.ignored), self.classes.reduce]
        whole = hashlib.sha256(json.dumps(meaning).encode())
        for split in sorted(self.scans):
            for digest in sorted(each.digest for each in self.scans[split] if each):
                whole.update(f"{split}:{digest};".encode())
        return whole.hexdigest()

    def facts(self) -> Facts:
        """See `Task.facts`."""
        return replace(super().facts(), classes=len(self.classes.names))

    def found(self) -> list[str]:
        """See `Task.found`."""
        parts = ", ".join(f"{count} {split}" for split, count in self.splits.items())
        table = self.classes.table()
        counts = np.zeros(IGNORED + 1, dtype=np.int64)
        for each in self.scans["train"]:
            for value, count in each.counts.items() if each else ():
                counts[table[value]] += count
        ignored, named = counts[IGNORED] / max(1, counts.sum()), counts[: len(self.classes.names)]
        absent = [name for name, count in zip(self.classes.names, named, strict=True) if not count]
        facts = self.facts()
        lines = [
            f"{sum(self.splits.values())} images with masks ({parts}), {len(self.classes.names)}"
            " classes"
        ]
        lines.append(
            f"median image {facts.width}x{facts.height} pixels, {ignored:.1%} of the training"
            " pixels have no class"
        )
        if absent:
            lines.append(f"no training pixel is {listed(absent)}")
        if self.bad:
            lines.append(f"{counted(len(self.bad), 'pair')} of image and mask cannot be used")
        return lines + self.notes

    # Model ----------------------------------------------------------------------------------------

    def build(self, name: str, recipe: Recipe, *, revision: str | None = None) -> nn.Module:
        """See `Task.build`."""
        config = AutoConfig.from_pretrained(name, revision=revision)
        self.recipe = self.square_side(recipe, config)
        overrides: dict[str, Any] = {
            "id2label": dict(enumerate(self.classes.names)),
            "image_size": self.recipe.crop,
            "semantic_loss_ignore_index": IGNORED,
        }
        if recipe.drop_path is not None:
            overrides["drop_path_rate"] = recipe.drop_path
        torch.manual_seed(recipe.seed)  # the new head is randomly initialized
        model: nn.Module = AutoModelForSemanticSegmentation.from_pretrained(
            name, revision=revision, **overrides
        )
        configuration: Any = model.config
        if self.classes.colors is not None:
            configuration.palette = self.classes.colors.tolist()
        self.colors = class_colors(configuration)
        processor = AutoImageProcessor.from_pretrained(name, revision=revision)
        processor.size = {"shortest_edge": self.recipe.resize or self.recipe.crop}
        processor.crop_size = {"height": self.recipe.crop, "width": self.recipe.crop}
        processor.do_resize, processor.do_center_crop = True, False
        processor.resample = BILINEAR
        processor.do_reduce_labels = self.classes.reduce
        self.processor = processor
        return model

    def save(self, folder: Path) -> None:
        """See `Task.save`: also what the mask values mean, for evaluations of other data."""
        super().save(folder)
        colors = self.classes.colors
        values = {
            "classes": self.classes.names,
            "palette": None if colors is None else colors.tolist(),
            "ignore_index": sorted(self.classes.ignored),
            "reduce_labels": self.classes.reduce,
        }
        atomic_write(folder / CLASSES, json.dumps(values, indent=2) + "\n")

    def attach(self, name: str | Path) -> nn.Module:
        """See `Task.attach`."""
        self.processor = AutoImageProcessor.from_pretrained(name)
        self.classes.reduce |= bool(getattr(self.processor, "do_reduce_labels", False))
        model: nn.Module = AutoModelForSemanticSegmentation.from_pretrained(name)
        self.colors = class_colors(model.config)
        return model

    # Pixels ---------------------------------------------------------------------------------------

    def prepare(self, folder: Path | None, splits: tuple[str, ...] = SPLITS) -> None:
        """See `Task.prepare`.

        Decoded images stay in memory where they take less than a gigabyte.
        """
        self.bad = [each for each in self.bad if each.split in splits]
        for split in [each for each in splits if each in self.examples]:
            self.drop_known_bad(split)
            size = sum(each.height * each.width * 4 for each in self.scans[split] if each)
            pairs: list[Pair] = []

            def one(index: int, split: str = split) -> Pair | str:
                try:
                    return self.read_pair(split, index)
                except InputError as error:
                    return str(error)

            indices = range(self.splits[split])
            how = "decoding images", len(indices), self.unit
            with self.options.progress.counting(*how) as seen:
                for index, result in enumerate(parallel(one, indices, self.options.workers)):
                    if isinstance(result, str):
                        self.bad.append(Bad(split, index, self.names(split)[index], result))
                    elif size <= MEMORY:
                        pairs.append(result)
                    seen(1)
            self.drop_known_bad(split)
            self.decoded[split] = pairs if size <= MEMORY else None
        self.drop_bad(splits)

    def keep(self, split: str, indices: NDArray[np.int64]) -> None:
        """See `ImageTask.keep`."""
        super().keep(split, indices)
        self.scans[split] = [self.scans[split][i] for i in indices]
        if pairs := self.decoded.get(split):
            self.decoded[split] = [pairs[i] for i in indices]

    def read_pair(self, split: str, index: int) -> Pair:
        """Image (H, W, 3) and classes (H, W) of a pair, from its files."""
        pairs = self.examples[split]
        values = read_values(pairs.masks[index], self.classes.colors)
        labels = self.classes.table()[values]
        if labels.min() < 0:
            strange = sorted({int(v) for v in np.unique(values[labels < 0])})
            raise InputError(
                f"{pairs.mask_of(index)} has the values {', '.join(map(str, strange[:5]))};"
                f" expected classes {1 if self.classes.reduce else 0} to"
                f" {len(self.classes.names) - (not self.classes.reduce)}, or 255 for none"
            )
        return decode(pairs.images[index]), labels.astype(np.uint8)

    def pair(self, split: str, index: int) -> Pair:
        """Image (H, W, 3) and classes (H, W) of a pair."""
        pairs = self.decoded[split]
        return self.read_pair(split, index) if pairs is None else pairs[index]

    def example(self, index: int, rng: np.random.Generator) -> dict[str, Tensor]:
        """See `Task.example`: image (3, S, S) uint8, and its labels (S, S) uint8.

        `augment` "crop-flip" and "resized-crop": random scale of 0.5 to 2, crop, mirror and
        colors; "flip": random crop and mirror; "none": the middle.
        """
        image, labels = self.pair("train", index)
        side, augment = self.recipe.crop, self.recipe.augment
        assert side is not None
        scales = SCALES if augment in ("crop-flip", "resized-crop") else (1.0, 1.0)
        image, labels = random_crop(
            image,
            labels,
            None if augment == "none" else rng,
            side=side,
            short=self.recipe.resize or side,
            resample=self.processor.resample,
            scales=scales,
            fill=[255 * mean for mean in self.processor.image_mean],
        )
        if augment != "none" and rng.random() < 0.5:
            image, labels = image[:, ::-1], labels[:, ::-1]
        if augment in ("crop-flip", "resized-crop"):
            image = random_colors(image, rng)
        return {
            "image": torch.from_numpy(image.transpose(2, 0, 1).copy()),
            "labels": torch.from_numpy(labels.copy()),
        }

    def weight(self, batch: dict[str, Tensor]) -> float:
        """See `Task.weight`: the pixels that have a class."""
        return float((batch["labels"] != IGNORED).sum().clamp(min=1))

    def micro(
        self, batch: dict[str, Tensor], rows: slice, device: torch.device
    ) -> dict[str, Tensor]:
        """See `Task.micro`: pixel_values (B, 3, S, S) and labels (B, S, S)."""
        return {
            "pixel_values": self.normalize(batch["image"][rows].to(device)),
            "labels": batch["labels"][rows].long().to(device),
        }

    def loss(self, model: nn.Module, inputs: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Task.loss`.

        Cross-entropy of every pixel that has a class (and that of the auxiliary head), and how many
        are right.
        """
        labels = inputs["labels"]
        alone = len(labels) == 1  # batch norm cannot learn from one image: it is shown twice
        doubled = {
            key: value.expand(2, *value.shape[1:]) if alone else value
            for key, value in inputs.items()
        }
        out = model(**doubled)
        counted = labels != IGNORED
        valid = counted.sum()
        # The network's loss is a mean: over all pixels, or over those with a class.
        over_valid = config_of(model).semantic_loss_mean == "valid"
        pixels = valid.clamp(min=1) if over_valid else labels.numel()
        small = labels[:, ::4, ::4]  # the logits' size or near it: enough for a figure in the log
        scores = nn.functional.interpolate(
            out.logits[: len(labels)].detach().float(), size=small.shape[1:], mode="bilinear"
        )
        shown = small != IGNORED
        right = ((scores.argmax(1) == small) & shown).sum() / shown.sum().clamp(min=1)
        return out.loss * pixels, {"pixel_accuracy": right * valid}

    # Evaluation -----------------------------------------------------------------------------------

    def evaluate(self, model: nn.Module, split: str, device: torch.device) -> Evaluation:
        """See `Task.evaluate`, at the size of each mask.

        `details` are the confusions (N, V, V), and the predictions of a few images.
        """
        mode = self.options.extra.get("mode", "slide")
        if mode not in ("slide", "whole"):
            raise ConfigError(f"mode={mode!r}; expected 'slide' or 'whole'")
        count, classes = self.splits[split], len(self.classes.names)
        confusions = np.zeros((count, classes, classes), dtype=np.int64)
        spread = set(np.linspace(0, count - 1, OTHERS).round().astype(int).tolist())
        worst: list[tuple[float, int, NDArray[np.uint8]]] = []
        shown: dict[str, NDArray[Any]] = {}
        with self.options.progress.counting("evaluating", count, self.unit) as seen:
            for index in range(count):
                image, labels = self.pair(split, index)
                predicted = segment(model, self.processor, image, mode).astype(np.uint8)  # (H, W)
                confusions[index] = pixel_confusion(labels, predicted, classes)
                iou = mean_iou(confusions[index])
                if index in spread:
                    shown[f"answer/{index}"] = predicted
                if not np.isnan(iou):
                    heapq.heappush(worst, (-iou, index, predicted))
                    if len(worst) > WORST:
                        heapq.heappop(worst)
                seen(1)
        shown |= {f"answer/{index}": predicted for _, index, predicted in worst}
        metrics, interval = segmentation_metrics(confusions.sum(0)), bootstrap_interval(confusions)
        return Evaluation(split, count, metrics, interval, {"confusions": confusions, **shown})

    def class_figures(self, evaluation: Evaluation) -> dict[str, Any]:
        """See `Task.class_figures`: None where a class has no pixel to measure it on."""
        confusion = evaluation.details["confusions"].sum(0)
        scores = class_scores(confusion)
        columns = {"iou": scores.iou, "accuracy": scores.accuracy, "precision": scores.precision}
        classes = {
            name: {"pixels": int(scores.pixels[i])}
            | {key: None if np.isnan(each[i]) else float(each[i]) for key, each in columns.items()}
            for i, name in enumerate(self.classes.names)
        }
        found: dict[str, Any] = {"classes": classes}
        if len(classes) <= MATRIX_CLASSES:
            found["confusion_matrix"] = confusion.tolist()
        return found

    def prediction_rows(self, evaluation: Evaluation) -> list[tuple[str, ...]]:
        """See `Task.prediction_rows`: how well each image was segmented."""
        found = [segmentation_metrics(each) for each in evaluation.details["confusions"]]
        return [
            (name, f"{each['mean_iou']:.6g}", f"{each['pixel_accuracy']:.6g}")
            for name, each in zip(self.names(evaluation.split), found, strict=True)
        ]

    def card(self) -> str:
        """See `Task.card`."""
        return (
            "from headstart import pipeline\n\n"
            'segment = pipeline("semantic-segmentation", "FOLDER")\n'
            'found = segment("photo.jpg")  # found["mask"] is the class of every pixel\n'
            'print(found["classes"])\n'
        )


def config_of(model: nn.Module) -> Any:
    """The configuration of a network, also where it is wrapped for several processes."""
    return getattr(model, "module", model).config
