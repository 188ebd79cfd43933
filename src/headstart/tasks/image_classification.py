"""Image classification: one class, any number of classes, or numbers for each image.

Letters: B images, H W sides of what the network sees, V classes, N images of a split.
"""

import time
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from headstart.auto import AutoConfig, AutoImageProcessor, AutoModelForImageClassification
from headstart.data.augment import color_jitter, cutmix_box, rand_augment, random_erase
from headstart.data.cache import (
    Bad,
    PixelCache,
    check_bad,
    decode,
    inspect,
    parallel,
    random_part,
    square,
    threads,
)
from headstart.data.duplicates import FLAT, Pair, difference_hash, pairs_in
from headstart.data.features import FeatureStore
from headstart.data.images import ImageData, combined_fingerprint, read_images
from headstart.data.labels import MULTI, REGRESSION, SINGLE
from headstart.data.options import SPLITS, DataOptions
from headstart.data.sources.raw import Examples, Source
from headstart.errors import ConfigError, DataError, InputError
from headstart.pipelines.base import batched
from headstart.progress import Progress
from headstart.recipe import Facts, Recipe
from headstart.report.explain import explain
from headstart.report.page import Section
from headstart.report.problems import duplicate_section, problem_sections
from headstart.tasks.base import Evaluation, Task, TunesHead
from headstart.tasks.problems import problem_of
from headstart.training.estimate import HeadCost, peak_memory
from headstart.training.head import fitting_seconds, inputs_of, install, model_key

# images in one pass: more make a processor wait for fresh memory (BiT-50: 86 ms an image at 32, 67
# at 16)
FEATURES_BATCH = 16
# images after which features are written, so that an interrupted run loses little
FEATURES_KEPT = 512


class ImageClassification(Task, TunesHead):
    """A class, several classes or numbers for each image, as the labels of the data say."""

    name: ClassVar[str] = "image-classification"

    def __init__(self, data: ImageData, options: DataOptions) -> None:
        self.data, self.options = data, options
        self.problem = problem_of(data.kind)
        self.bad: list[Bad] = []
        self.skipped: list[Bad] = []
        self._inspect()
        self.processor: Any = None
        self.model: nn.Module | None = None
        self.recipe = Recipe()
        self.caches: dict[str, PixelCache] = {}
        self.trains = True

    @classmethod
    def read(cls, path: str | Path, options: DataOptions) -> Self:
        """See `Task.read`."""
        return cls(read_images(path, options), options)

    def _inspect(self) -> None:
        """Hashes and sizes of all images; those without a readable header are set aside."""
        self.digests: dict[str, list[str]] = {}
        self.sizes: dict[str, NDArray[np.int64]] = {}  # (N, 2): height and width
        for split, examples in self.data.splits.items():
            results = list(parallel(inspect, examples.images, self.options.workers))
            self.bad += [
                Bad(split, i, examples.names[i], result)
                for i, result in enumerate(results)
                if isinstance(result, str)
            ]
            self.digests[split] = [
                result[0] if isinstance(result, tuple) else "" for result in results
            ]
            self.sizes[split] = np.array(
                [result[1:] if isinstance(result, tuple) else (0, 0) for result in results]
            ).reshape(-1, 2)

        judged = {
            d for split, digests in self.digests.items() if split != "train" for d in digests if d
        }
        leaked = sum(d in judged for d in self.digests.get("train", []))
        if leaked:
            text = (
                "training images are also in the data that judges: the result flatters (`headstart"
                " audit` lists them)"
            )
            self.data.notes.append(f"{leaked} {text}")

    @property
    def headline(self) -> str:
        """See `Task.headline`."""
        return self.problem.headline

    @property
    def splits(self) -> dict[str, int]:
        """See `Task.splits`."""
        return {split: len(examples) for split, examples in self.data.splits.items()}

    @property
    def fingerprint(self) -> str:
        """See `Task.fingerprint`: of classes, and of content, label and split of every image."""
        return combined_fingerprint(self.data.classes, self.data.splits, self.digests)

    def facts(self) -> Facts:
        """See `Task.facts`; sizes are those of the median training image by area."""
        sizes = self.sizes["train"][self.sizes["train"].min(axis=1) > 0]
        if not len(sizes):
            check_bad(self.bad, False, sum(self.splits.values()))
        height, width = sizes[
            np.argsort(sizes.prod(axis=1), kind="stable")[len(sizes) // 2]
        ].tolist()
        return Facts(
            examples=len(self.data.splits["train"]),
            classes=len(self.data.classes),
            height=height,
            width=width,
        )

    def found(self) -> list[str]:
        """See `Task.found`."""
        facts, labels = self.facts(), self.data.splits["train"].labels
        parts = ", ".join(f"{count} {split}" for split, count in self.splits.items())
        lines = [f"{sum(self.splits.values())} images ({parts}), {self._labels_found(labels)}"]
        lines.append(f"median image {facts.width}x{facts.height} pixels")
        counts = self._counts(labels)
        if len(counts) and counts.min() and counts.max() >= 10 * counts.min():
            rare, common = (
                self.data.classes[int(counts.argmin())],
                self.data.classes[int(counts.argmax())],
            )
            what = (
                f"unbalanced: {common!r} has {counts.max()} training images, {rare!r}"
                f" {counts.min()}"
            )
            lines.append(
                what
                + " (--class-weights balanced makes up for it)"
                * (self.recipe.class_weights == "none")
            )
        if self.bad:
            lines.append(f"{len(self.bad)} of {sum(self.splits.values())} images cannot be read")
        return lines + self.data.notes

    def _counts(self, labels: NDArray[Any]) -> NDArray[np.int64]:
        """Training images of each class, (V,); none where labels are numbers."""
        if self.data.kind == SINGLE:
            return np.bincount(labels, minlength=len(self.data.classes))
        return (
            labels.sum(0).astype(np.int64)
            if self.data.kind == MULTI
            else np.zeros(0, dtype=np.int64)
        )

    def _labels_found(self, labels: NDArray[Any]) -> str:
        """What the training labels are, for the first line that the user sees."""
        classes = self.data.classes
        if self.data.kind == REGRESSION:
            ranges = [
                f"{name} from {low:.4g} to {high:.4g}"
                for name, low, high in zip(classes, labels.min(0), labels.max(0), strict=True)
            ]
            return ", ".join(ranges[:4]) + (
                f" and {len(ranges) - 4} more numbers" if len(ranges) > 4 else ""
            )
        counts = self._counts(labels)
        balance = (
            f"{counts.min()} to {counts.max()}"
            if counts.min() < counts.max()
            else str(counts.min())
        )
        if self.data.kind == MULTI:
            return (
                f"{labels.sum(1).mean():.1f} of {len(classes)} labels each, each label in {balance}"
                " training images"
            )
        return f"{len(classes)} classes of {balance} training images"

    # Model ----------------------------------------------------------------------------------------

    def build(self, name: str, recipe: Recipe, *, revision: str | None = None) -> nn.Module:
        """See `Task.build`."""
        self.recipe = recipe
        config = AutoConfig.from_pretrained(name, revision=revision)
        overrides = self.problem.overrides(self.data.classes)
        if recipe.drop_path is not None:
            rate = config.drop_path_rate
            overrides["drop_path_rate"] = (
                [*rate[:-1], recipe.drop_path] if isinstance(rate, list) else recipe.drop_path
            )
        model: nn.Module = AutoModelForImageClassification.from_pretrained(
            name, revision=revision, **overrides
        )
        self.problem.look(self.data.classes, self.data.splits["train"].labels, recipe.class_weights)
        if recipe.zero_head:
            self.problem.start(head_of(model))
        self.processor = AutoImageProcessor.from_pretrained(name, revision=revision)
        self.recipe = replace(recipe, crop=recipe.crop or processor_side(self.processor))
        if self.recipe.crop:
            set_processor_side(self.processor, self.recipe.crop)
        self.model = model
        return model

    def attach(self, name: str | Path) -> nn.Module:
        """See `Task.attach`."""
        self.processor = AutoImageProcessor.from_pretrained(name)
        self.trains = False
        model: nn.Module = AutoModelForImageClassification.from_pretrained(name)
        self.model = model
        return model

    def save(self, folder: Path) -> None:
        """See `Task.save`."""
        self.processor.save_pretrained(folder)

    # Pixels ---------------------------------------------------------------------------------------

    def prepare(self, folder: Path | None, splits: tuple[str, ...] = SPLITS) -> None:
        """See `Task.prepare`."""
        self.bad = [each for each in self.bad if each.split in splits]
        for split in splits:
            if split not in self.data.splits:
                continue
            self._leave_out(split)
            cache = self._cache(split, folder)
            failed = cache.fill(self.options.workers)
            self.bad += [Bad(split, i, cache.examples.names[i], reason) for i, reason in failed]
            self.caches[split] = cache
        self._settle_bad(splits)

    def _settle_bad(self, splits: tuple[str, ...]) -> None:
        """Stops over unreadable images, or leaves them out and says so."""
        total = sum(count for split, count in self.splits.items() if split in splits)
        everything = self.skipped + self.bad
        check_bad(everything, self.options.skip_bad, total + len(self.skipped))
        for split in splits:
            self._leave_out(split)
        if everything:
            self.data.notes.append(f"{len(everything)} unreadable images left out")
        if "train" not in splits or not self.trains:
            return
        counts = self._counts(self.data.splits["train"].labels)
        if len(counts) and not counts.all():
            raise DataError(
                "no readable training image is left of class"
                f" {self.data.classes[int(counts.argmin())]!r}"
            )

    def _leave_out(self, split: str) -> None:
        """Drops the bad images of a split from everything that is in its order."""
        out = {each.index for each in self.bad if each.split == split}
        self.skipped += [each for each in self.bad if each.split == split]
        self.bad = [each for each in self.bad if each.split != split]
        if not out:
            return
        kept = np.array(
            [i for i in range(len(self.data.splits[split])) if i not in out], dtype=np.int64
        )
        self.data.splits[split] = self.data.splits[split].take(kept)
        self.digests[split] = [self.digests[split][i] for i in kept]
        self.sizes[split] = self.sizes[split][kept]
        if split in self.caches:
            self.caches[split].keep(kept)

    def _cache(self, split: str, folder: Path | None) -> PixelCache:
        examples: Examples = self.data.splits[split]
        file = folder / f"{split}.npy" if folder else None
        if split == "train" and self.trains:
            side = (
                self.recipe.resize
                if self.recipe.augment in ("crop-flip", "resized-crop") and self.recipe.resize
                else self.recipe.crop
            )
            if side is None:
                raise DataError("the model's image processor has no size; give one with --crop")
            return PixelCache(
                examples, side, partial(square, side=side, resample=self.processor.resample), file
            )
        side = processor_side(self.processor)
        if side is None:
            raise DataError("the model's image processor has no size; give one with --crop")
        return PixelCache(examples, side, self._seen, file)

    def _seen(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """What the processor shows the network of an image, before values are rescaled.

        (H, W, 3) uint8.
        """
        out = self.processor(
            pixels,
            do_rescale=False,
            do_normalize=False,
            data_format="channels_last",
            return_tensors="np",
        )
        seen: NDArray[np.uint8] = np.rint(out["pixel_values"][0]).clip(0, 255).astype(np.uint8)
        return seen

    def normalised(self, images: Tensor) -> Tensor:
        """Values as the network wants them, of uint8 (B, 3, H, W)."""
        mean, std = (
            torch.tensor(v, device=images.device).view(3, 1, 1)
            for v in (self.processor.image_mean, self.processor.image_std)
        )
        values: Tensor = images.float() * self.processor.rescale_factor
        return (values - mean) / std if self.processor.do_normalize else values

    def example(self, index: int, rng: np.random.Generator) -> dict[str, Tensor]:
        """See `Task.example`: image (3, H, W) uint8, and its label."""
        image, side = self.caches["train"][index], self.recipe.crop
        assert side is not None
        if self.recipe.augment == "crop-flip":
            top, left = rng.integers(0, image.shape[0] - side + 1, 2)
            image = image[top : top + side, left : left + side]
        elif self.recipe.augment == "resized-crop":
            height, width, _ = image.shape
            part = random_part(height, width, rng, area=(0.5, 1.0), aspect=(3 / 4, 4 / 3))
            image = square(image[part], side, self.processor.resample)
        if self.recipe.augment != "none" and rng.random() < 0.5:
            image = image[:, ::-1]
        image = self._recoloured(image, rng)
        label = torch.tensor(self.data.splits["train"].labels[index])
        return {
            "image": torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))),
            "label": label,
        }

    def _recoloured(self, image: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
        """The image after RandAugment or colour jitter, and random erasing, where the recipe asks
        for them.
        """
        recipe, processor = self.recipe, self.processor
        if recipe.rand_augment:
            image = rand_augment(image, recipe.rand_augment, rng)
        elif recipe.color_jitter:
            image = color_jitter(image, recipe.color_jitter, rng)
        return (
            random_erase(image, recipe.erasing, processor.image_mean, processor.image_std, rng)
            if recipe.erasing
            else image
        )

    def augment_batch(
        self, batch: dict[str, Tensor], rng: np.random.Generator
    ) -> dict[str, Tensor]:
        """See `Task.augment_batch`.

        MixUp or CutMix with one share and one permutation a batch, as in the BiT paper.
        """
        if not self.recipe.mixes:
            return batch
        order = torch.from_numpy(rng.permutation(len(batch["label"])))
        cut = self.recipe.cutmix > 0 and (self.recipe.mixup == 0 or rng.random() < 0.5)
        alpha = self.recipe.cutmix if cut else self.recipe.mixup
        share = float(rng.beta(alpha, alpha))
        if cut:
            _, _, H, W = batch["image"].shape
            top, left, bottom, right = cutmix_box(H, W, share, rng)
            batch = batch | {"box": torch.tensor([top, left, bottom, right])}
            share = 1 - (bottom - top) * (right - left) / (H * W)
        return batch | {"partner": order, "share": torch.tensor(share, dtype=torch.float32)}

    def micro(
        self, batch: dict[str, Tensor], rows: slice, device: torch.device
    ) -> dict[str, Tensor]:
        """See `Task.micro`: pixel_values (B, 3, H, W), and the targets (B, V)."""

        def part(which: slice | Tensor) -> tuple[Tensor, Tensor]:
            targets = batch["label"][which].to(device)
            if self.data.kind == SINGLE:
                targets = F.one_hot(targets, len(self.data.classes)).float()  # (B, V)
            return self.normalised(batch["image"][which].to(device, non_blocking=True)), targets

        pixels, targets = part(rows)
        if "partner" in batch:
            share = batch["share"].to(device)
            other_pixels, other_targets = part(batch["partner"][rows])
            targets = torch.lerp(other_targets, targets, share)
            if "box" in batch:
                top, left, bottom, right = batch["box"].tolist()
                pixels[..., top:bottom, left:right] = other_pixels[..., top:bottom, left:right]
            else:
                pixels = torch.lerp(other_pixels, pixels, share)
        return {"pixel_values": pixels, "targets": targets}

    def loss(self, model: nn.Module, inputs: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Task.loss`: what the labels ask for, see `headstart.tasks.problems`."""
        logits = model(pixel_values=inputs["pixel_values"]).logits.float()  # (B, V)
        return self.problem.compare(logits, inputs["targets"], self.recipe.label_smoothing)

    def finish(self, model: nn.Module) -> None:
        """See `Task.finish`."""
        self.problem.finish(head_of(model))

    # A head on fixed features ---------------------------------------------------------------------

    def tune_head(
        self, model: nn.Module, device: torch.device, progress: Progress
    ) -> dict[str, Evaluation]:
        """See `TunesHead.tune_head`."""
        features = self.features(model, device, progress)
        layer = head_of(model)
        fit = self.problem.fit(
            features["train"],
            self.data.splits["train"].labels,
            len(self.data.classes),
            self.recipe.seed,
        )
        install(layer, fit)
        how = (
            f"chosen by {fit.folds}-fold cross-validation"
            if fit.losses
            else "not chosen: a class has a single image"
        )
        self.data.notes.append(f"regularisation C = {fit.strength:g}, {how}")
        progress.say(self.data.notes[-1])
        scores = {
            split: rows @ fit.weight.T + fit.bias
            for split, rows in features.items()
            if split != "train"
        }
        return {split: self._judged(split, each) for split, each in scores.items()}

    def head_cost(self, model: nn.Module, device: torch.device) -> HeadCost:
        """See `TunesHead.head_cost`."""
        _, missing, _ = self._missing(model)
        few = list(missing.values())[: min(FEATURES_BATCH, 1 + len(missing) // 8)]
        features = len(missing) * self._seconds_each(model, few, device) if few else 0.0
        fit = fitting_seconds(
            len(self.data.splits["train"]), head_of(model).in_features, len(self.data.classes)
        )
        return HeadCost(features, fit, peak_memory(device))

    def _missing(self, model: nn.Module) -> tuple[FeatureStore, dict[str, Source], int]:
        """The store, the images by digest whose features it lacks, and the number of those that it
        has.
        """
        store = FeatureStore(model_key(model, self.processor.to_dict()))
        sources = {
            d: self.data.splits[split].images[i]
            for split, digests in self.digests.items()
            for i, d in enumerate(digests)
            if d
        }
        missing = {digest: source for digest, source in sources.items() if digest not in store}
        return store, missing, len(sources) - len(missing)

    @torch.inference_mode()
    def features(
        self, model: nn.Module, device: torch.device, progress: Progress
    ) -> dict[str, NDArray[np.float32]]:
        """What goes into the head, (N, D) for every split.

        From the store, or computed and kept there.
        """
        store, missing, known = self._missing(model)
        if known:
            progress.say(f"features of {known} images are known from before")
        failed: dict[str, str] = {}
        done, began = 0, time.perf_counter()
        progress.start("features", len(missing))
        for part in batched(list(missing.items()), FEATURES_KEPT):
            digests: list[str] = []
            rows: list[Tensor] = []
            ready = zip(
                part,
                parallel(
                    self._pixels_or_reason, [source for _, source in part], self.options.workers
                ),
                strict=True,
            )
            for chunk in batched(ready, FEATURES_BATCH if processor_side(self.processor) else 1):
                failed |= {
                    digest: result for (digest, _), result in chunk if isinstance(result, str)
                }
                good = {
                    digest: result for (digest, _), result in chunk if not isinstance(result, str)
                }
                if good:
                    digests += good
                    rows.append(self._head_inputs(model, torch.cat(list(good.values())).to(device)))
                done += len(chunk)
                progress.update(done, {}, done / (time.perf_counter() - began))
            if rows:
                store.add(digests, torch.cat(rows).numpy())
        for split, examples in self.data.splits.items():
            self.bad += [
                Bad(split, i, examples.names[i], failed[d])
                for i, d in enumerate(self.digests[split])
                if d in failed
            ]
        self._settle_bad(SPLITS)
        return {split: store[digests] for split, digests in self.digests.items()}

    @torch.inference_mode()
    def _seconds_each(self, model: nn.Module, sources: list[Source], device: torch.device) -> float:
        """Seconds that reading an image and computing its features will take.

        On a CPU both use the same cores.
        """
        began = time.perf_counter()
        pixels = [each for each in map(self._pixels_or_reason, sources) if isinstance(each, Tensor)]
        load = (time.perf_counter() - began) / len(sources) / threads(self.options.workers)
        if not pixels:
            return load
        count = len(pixels) if processor_side(self.processor) else 1
        for _ in range(2):  # the first pass also allocates
            began = time.perf_counter()
            self._head_inputs(model, torch.cat(pixels[:count]).to(device))
        compute = (time.perf_counter() - began) / count
        return load + compute if device.type == "cpu" else max(load, compute)

    def _pixels_or_reason(self, source: Source) -> Tensor | str:
        """What the processor makes of an image, (1, 3, H, W), or why it cannot be read."""
        try:
            pixels: Tensor = self.processor(decode(source), return_tensors="pt")["pixel_values"]
        except InputError as error:
            return str(error)
        return pixels

    def _head_inputs(self, model: nn.Module, pixel_values: Tensor) -> Tensor:
        """(B, D) on the CPU."""
        with inputs_of(head_of(model)) as seen:
            model(pixel_values=pixel_values)
        return seen[0].float().cpu()

    # Judging --------------------------------------------------------------------------------------

    @torch.inference_mode()
    def evaluate(self, model: nn.Module, split: str, device: torch.device) -> Evaluation:
        """See `Task.evaluate`: `details` are logits (N, V) (numbers in their units) and labels."""
        cache = self.caches[split]
        labels = cache.examples.labels
        logits = []
        for start in range(0, len(labels), 32):
            # (B, H, W, 3)
            images = np.stack([cache[i] for i in range(start, min(start + 32, len(labels)))])
            # (B, 3, H, W)
            pixels = self.normalised(torch.from_numpy(images).permute(0, 3, 1, 2).to(device))
            logits.append(model(pixel_values=pixels).logits.float().cpu().numpy())
        return self._judged(split, self.problem.in_units(np.concatenate(logits)))

    def _judged(self, split: str, scores: NDArray[np.float32]) -> Evaluation:
        """The evaluation of scores (N, V) of a split."""
        labels = self.data.splits[split].labels
        if not np.isfinite(scores).all():
            raise ConfigError(
                "the model's scores are not finite numbers: training diverged; try a smaller --lr"
            )
        metrics, interval = self.problem.measure(scores, labels)
        return Evaluation(
            split, len(labels), metrics, interval, {"logits": scores, "labels": labels}
        )

    def report(self, evaluation: Evaluation) -> list[Section]:
        """See `Task.report`."""
        examples, model = self.data.splits[evaluation.split], self.model

        # a picture, and what was looked at in it, are made one after the other
        @lru_cache(maxsize=1)
        def pixels(index: int) -> NDArray[np.uint8]:
            return decode(examples.images[index])

        def looked_at(index: int, label: str) -> NDArray[np.uint8]:
            assert model is not None
            return explain(model, self.processor, pixels(index), label).overlay()

        seen = looked_at if model is not None else None
        sections = problem_sections(
            self.data.kind, evaluation, self.data.classes, examples.names, pixels, seen
        )
        return [*sections, duplicate_section(*self._duplicates())]

    def _duplicates(self) -> tuple[list[Pair], dict[str, Source]]:
        """Images that are the same, or look so where they are at hand already.

        And where each image is, by name.
        """
        every = [(split, i) for split, digests in self.digests.items() for i in range(len(digests))]

        def look(at: tuple[str, int]) -> int:
            cache = self.caches.get(at[0])
            return FLAT if cache is None or cache.pixels is None else difference_hash(cache[at[1]])

        hashes = np.array(list(parallel(look, every, self.options.workers)), dtype=np.uint64)
        pairs = pairs_in(self.data, every, [self.digests[split][i] for split, i in every], hashes)
        return pairs, {
            name: image
            for part in self.data.splits.values()
            for name, image in zip(part.names, part.images, strict=True)
        }

    def card(self) -> str:
        """See `Task.card`."""
        return (
            "from headstart import pipeline\n\n"
            'classify = pipeline("image-classification", "FOLDER")\n'
            f'print(classify("photo.jpg"{", top_k=3" if self.data.kind == SINGLE else ""}))\n'
        )


def head_of(model: nn.Module) -> nn.Linear:
    """The linear layer that gives the scores: the last one whose size is the number of classes."""
    layers = [
        module
        for module in model.modules()
        if isinstance(module, nn.Linear) and module.out_features == model.config.num_labels
    ]  # type: ignore[union-attr]
    return layers[-1]


def processor_side(processor: Any) -> int | None:  # noqa: ANN401 - any family's processor
    """Side of the squares that a processor makes, where it makes squares of one size."""
    crops = bool(getattr(processor, "do_center_crop", False))
    size: dict[str, int] = processor.crop_size if crops else processor.size
    sides = set(size.values())
    # ConvNeXT's crops by itself
    cropped = crops or "height" in size or hasattr(processor, "crop_pct")
    return sides.pop() if len(sides) == 1 and cropped else None


def set_processor_side(processor: Any, side: int) -> None:  # noqa: ANN401 - any family's processor
    """Makes a processor give squares of this side of the whole image (ConvNeXT's.

    Its own way of getting there).
    """
    if hasattr(processor, "crop_pct"):
        processor.size = {"shortest_edge": side}
        return
    processor.do_resize = True
    processor.size = {"height": side, "width": side}
    processor.crop_size = {"height": side, "width": side}
    processor.do_center_crop = False
