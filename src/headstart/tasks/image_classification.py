"""Image classification: one class, any number of labels, or regression targets for each image.

Letters: B images, H W sides of what the network sees, V classes, N images of a split.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from headstart.auto import AutoConfig, AutoImageProcessor, AutoModelForImageClassification
from headstart.data.augment import color_jitter, cutmix_box, rand_augment, random_erase
from headstart.data.cache import Bad, PixelCache, decode, parallel, random_part, square
from headstart.data.duplicates import difference_hash, near_pairs
from headstart.data.features import HASHES, FeatureStore
from headstart.data.images import ImageData, combined_fingerprint, read_images
from headstart.data.labels import MULTI, REGRESSION, SINGLE
from headstart.data.options import IMAGE_ROLES, MANY, SPLITS, DataOptions
from headstart.data.passes import forward_passes, images_in_a_pass
from headstart.data.sources.raw import Source
from headstart.errors import ConfigError, DataError, InputError, counted, listed
from headstart.pipelines.base import batched
from headstart.recipe import Facts, Recipe
from headstart.tasks.base import Evaluation, HeadTask, Inputs, joined_groups
from headstart.tasks.image import ImageTask
from headstart.tasks.problems import problem_of

READ_TOGETHER = 512  # images that threads read ahead of the network
LARGER_SIDES = (1.5, 2.0)  # times the usual side: tried for a fitted head
COUNTED = 100_000  # unreadable images of which each is counted once
REPORTED = 10  # unreadable images that are named as they are found


class LabelledImages(ImageTask):
    """What trains an image classifier: images and labels, augmented, and the network."""

    def __init__(self, data: ImageData, options: DataOptions) -> None:
        super().__init__(data.splits, data.notes, options)
        self.data = data
        self.problem = problem_of(data.kind)
        self.model: nn.Module | None = None
        self.unread: dict[str, str] = {}  # digest → reason, of images without features
        self.hashes: dict[str, int] = {}  # difference hashes of images that were decoded
        self.looks: dict[str, NDArray[np.uint64]] = {}  # by split, of the images as they are seen
        self.lost: dict[str, str] = {}  # name of an unreadable training image → why
        self._look()
        digests = self.digests_of.items()
        others = {d for split, each in digests if split != "train" for d in each if d}
        leaked = sum(digest in others for digest in self.digests_of.get("train", []))
        if leaked:
            self.notes.append(
                f"{leaked} training images are also in the evaluation data: the result flatters"
                " (`headstart audit` lists them)"
            )

    @classmethod
    def read(cls, path: str | Path, options: DataOptions) -> Self:
        """See `Task.read`."""
        return cls(read_images(path, options), options)

    def _look(self) -> None:
        """Opens every image, or a random part of very many where the option "look" bounds it."""
        look, total = self.options.extra.get("look"), sum(self.splits.values())
        if look is not None and (type(look) is not int or look < 1):
            raise ConfigError(f"--option look={look}; expected a number of images above 0")
        if look is None or total <= MANY * look:
            self.inspect()
            return
        self.inspect(look)
        then = "is left out or replaced" if self.options.skip_bad else "stops the run"
        opened = total - sum(len(self.unopened(split)) for split in self.splits)
        self.notes.append(
            f"{opened:,} of {total:,} images were opened, a random choice (--option look=N); the"
            f" others are opened when they are needed: one that cannot be read {then} then"
        )

    def digests(self, split: str) -> Sequence[str]:
        """See `Task.digests`: opens the images that were not opened yet."""
        unopened = self.unopened(split)
        if len(unopened):
            self.open_images({split: unopened})
        return self.digests_of[split]

    @property
    def headline(self) -> str:
        """See `Task.headline`."""
        return self.problem.headline

    @property
    def classes(self) -> list[str]:
        """See `HeadTask.classes`."""
        return self.data.classes

    @property
    def fingerprint(self) -> str:
        """See `Task.fingerprint`: of classes, and of content, label and split of every image.

        Where an image was not opened, its file name stands for its content.
        """
        digests = {split: list(each) for split, each in self.digests_of.items()}
        for split, each in digests.items():
            names = self.names(split)
            for i in self.unopened(split).tolist():
                each[i] = names[i].rpartition("/")[2]
        return combined_fingerprint(self.classes, self.examples, digests)

    def facts(self) -> Facts:
        """See `Task.facts`."""
        return replace(super().facts(), classes=len(self.classes))

    def found(self) -> list[str]:
        """See `Task.found`."""
        facts, total = self.facts(), sum(self.splits.values())
        parts = ", ".join(f"{count} {split}" for split, count in self.splits.items())
        lines = [
            f"{total} images ({parts}), {self._describe_labels()}",
            f"median image {facts.width}x{facts.height} pixels",
        ]
        counts = self._counts()
        if len(counts) and counts.min() and counts.max() >= 10 * counts.min():
            rare, common = (self.classes[int(each())] for each in (counts.argmin, counts.argmax))
            balanced = self.recipe.class_weights != "none"
            lines.append(
                f"unbalanced: {common!r} has {counts.max()} training images, {rare!r}"
                f" {counts.min()}"
                + ("" if balanced else " (--class-weights balanced makes up for it)")
            )
        if self.bad:
            opened = total - sum(len(self.unopened(split)) for split in self.splits)
            lines.append(f"{len(self.bad)} of {opened} images cannot be read")
        if self.lost:
            first = next(iter(self.lost.items()))
            lines.append(
                f"{counted(len(self.lost), 'unreadable image')} replaced by other training images:"
                f" {': '.join(first)}{', …' if len(self.lost) > 1 else ''}"
            )
        return lines + self.notes

    def _counts(self) -> NDArray[np.int64]:
        """Training images of each class, (V,); none where labels are regression targets."""
        labels = self.targets("train")
        if self.data.kind == SINGLE:
            return np.bincount(labels, minlength=len(self.classes))
        counted = self.data.kind == MULTI
        return labels.sum(0).astype(np.int64) if counted else np.zeros(0, dtype=np.int64)

    def _describe_labels(self) -> str:
        """The training labels, for the first line that the user sees."""
        labels, count = self.targets("train"), len(self.classes)
        if self.data.kind == REGRESSION:
            ranges = [
                f"{name} from {low:.4g} to {high:.4g}"
                for name, low, high in zip(self.classes, labels.min(0), labels.max(0), strict=True)
            ]
            return listed(ranges, 4)
        low, high = self._counts().min(), self._counts().max()
        balance = f"{low} to {high}" if low < high else str(low)
        if self.data.kind == MULTI:
            each = f"{labels.sum(1).mean():.1f} of {count} labels each"
            return f"{each}, each label in {balance} training images"
        return f"{count} classes of {balance} training images"

    # Model ----------------------------------------------------------------------------------------

    def build(self, name: str, recipe: Recipe, *, revision: str | None = None) -> nn.Module:
        """See `Task.build`."""
        self.recipe = recipe
        config = AutoConfig.from_pretrained(name, revision=revision)
        overrides = self.problem.overrides(self.classes)
        if recipe.drop_path is not None:
            rate = config.drop_path_rate
            overrides["drop_path_rate"] = (
                [*rate[:-1], recipe.drop_path] if isinstance(rate, list) else recipe.drop_path
            )
        model = self.new_model(name, revision, overrides)
        self.problem.look(self.classes, self.targets("train"), recipe.class_weights)
        if recipe.zero_head:
            self.problem.start(head_of(model))
        self.processor = AutoImageProcessor.from_pretrained(name, revision=revision)
        self.recipe = replace(recipe, crop=recipe.crop or processor_side(self.processor))
        if self.recipe.crop:
            set_processor_side(self.processor, self.recipe.crop)
        self.model = model
        return model

    def new_model(self, name: str, revision: str | None, overrides: dict[str, Any]) -> nn.Module:
        """The network that is trained, with these values of its configuration."""
        model: nn.Module = AutoModelForImageClassification.from_pretrained(
            name, revision=revision, **overrides
        )
        return model

    def attach(self, name: str | Path) -> nn.Module:
        """See `Task.attach`."""
        self.processor = AutoImageProcessor.from_pretrained(name)
        self.trains = False
        model: nn.Module = AutoModelForImageClassification.from_pretrained(name)
        self.model = model
        return model

    # Pixels ---------------------------------------------------------------------------------------

    def prepare(self, folder: Path | None, splits: tuple[str, ...] = SPLITS) -> None:
        """See `Task.prepare`."""
        self.fill_caches(folder, splits)

    def drop_bad(self, splits: Sequence[str] = SPLITS) -> None:
        """See `ImageTask.drop_bad`; every class needs a training image."""
        super().drop_bad(splits)
        counts = self._counts() if self.trains and "train" in splits else np.ones(1)
        if len(counts) and not counts.all():
            missing = self.classes[int(counts.argmin())]
            raise DataError(f"no readable training image is left of class {missing!r}")

    def cache(self, split: str, file: Path | None) -> PixelCache:
        """See `ImageTask.cache`."""
        recipe, training = self.recipe, split == "train" and self.trains
        crops = recipe.augment in ("crop-flip", "resized-crop") and recipe.resize
        side = processor_side(self.processor)
        if training:
            side = recipe.resize if crops else recipe.crop
        if side is None:
            raise DataError("the model's image processor has no size; give one with --crop")
        whole = partial(square, side=side, resample=self.processor.resample)
        view = whole if training else self._processed
        return PixelCache(self.examples[split], side, view, file)

    def _processed(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """What the processor gives the network before values are rescaled, (H, W, 3) uint8."""
        out = self.processor(
            pixels,
            do_rescale=False,
            do_normalize=False,
            data_format="channels_last",
            return_tensors="np",
        )
        seen: NDArray[np.uint8] = np.rint(out["pixel_values"][0]).clip(0, 255).astype(np.uint8)
        return seen

    def example(self, index: int, rng: np.random.Generator) -> dict[str, Tensor]:
        """See `Task.example`: image (3, H, W) uint8, and its label."""
        try:
            return self._example(index, rng)
        except InputError as error:  # an image that was not opened before
            return self.replaced(self.names("train")[index], str(error), rng)

    def _example(self, index: int, rng: np.random.Generator) -> dict[str, Tensor]:
        return self.augmented(
            self.caches["train"][index], self.examples["train"].labels[index], rng
        )

    def replaced(self, name: str, reason: str, rng: np.random.Generator) -> dict[str, Tensor]:
        """An example in place of one that cannot be read.

        Raises:
            DataError: `skip_bad` does not allow it.
        """
        if not self.options.skip_bad:
            raise DataError(
                f"{name}: {reason} (--skip-bad goes on without such images; a run that has begun"
                " with --resume --skip-bad)"
            )
        if name not in self.lost and len(self.lost) < COUNTED:  # each epoch reads it again
            self.lost[name] = reason
            if len(self.lost) <= REPORTED:
                rest = "; further ones are counted only" if len(self.lost) == REPORTED else ""
                self.options.progress.report(f"headstart: {name}: {reason}: replaced{rest}")
        for at in rng.permutation(len(self.examples["train"])).tolist():
            try:
                return self._example(at, rng)
            except InputError:
                continue
        raise DataError(f"{name}: {reason}; no other training image can be decoded either")

    def augmented(
        self, image: NDArray[np.uint8], label: Any, rng: np.random.Generator
    ) -> dict[str, Tensor]:
        """A training example from what `cache` gives of an image."""
        side = self.recipe.crop
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
        image = self._recolored(image, rng)
        return {
            "image": torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))),
            "label": torch.tensor(label),
        }

    def _recolored(self, image: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
        """The image after RandAugment or color jitter, and random erasing, as the recipe asks."""
        recipe, processor = self.recipe, self.processor
        if recipe.rand_augment:
            image = rand_augment(image, recipe.rand_augment, rng)
        elif recipe.color_jitter:
            image = color_jitter(image, recipe.color_jitter, rng)
        if not recipe.erasing:
            return image
        return random_erase(image, recipe.erasing, processor.image_mean, processor.image_std, rng)

    def augment_batch(
        self, batch: dict[str, Tensor], rng: np.random.Generator
    ) -> dict[str, Tensor]:
        """See `Task.augment_batch`.

        MixUp or CutMix with one proportion and one permutation a batch, as in the BiT paper.
        """
        if not self.recipe.mixes:
            return batch
        order = torch.from_numpy(rng.permutation(len(batch["label"])))
        cut = self.recipe.cutmix > 0 and (self.recipe.mixup == 0 or rng.random() < 0.5)
        alpha = self.recipe.cutmix if cut else self.recipe.mixup
        portion = float(rng.beta(alpha, alpha))
        if cut:
            _, _, H, W = batch["image"].shape
            top, left, bottom, right = cutmix_box(H, W, portion, rng)
            batch = batch | {"box": torch.tensor([top, left, bottom, right])}
            portion = 1 - (bottom - top) * (right - left) / (H * W)
        return batch | {"partner": order, "portion": torch.tensor(portion, dtype=torch.float32)}

    def micro(
        self, batch: dict[str, Tensor], rows: slice, device: torch.device
    ) -> dict[str, Tensor]:
        """See `Task.micro`: pixel_values (B, 3, H, W), and the targets (B, V)."""

        def part(which: slice | Tensor) -> tuple[Tensor, Tensor]:
            targets = batch["label"][which].to(device)
            if self.data.kind == SINGLE:
                targets = F.one_hot(targets, len(self.classes)).float()  # (B, V)
            return self.normalize(batch["image"][which].to(device, non_blocking=True)), targets

        pixels, targets = part(rows)
        if "partner" in batch:
            portion = batch["portion"].to(device)
            other_pixels, other_targets = part(batch["partner"][rows])
            targets = torch.lerp(other_targets, targets, portion)
            if "box" in batch:
                top, left, bottom, right = batch["box"].tolist()
                pixels[..., top:bottom, left:right] = other_pixels[..., top:bottom, left:right]
            else:
                pixels = torch.lerp(other_pixels, pixels, portion)
        return {"pixel_values": pixels, "targets": targets}

    def targets(self, split: str) -> NDArray[Any]:
        """See `HeadTask.targets`."""
        labels: NDArray[Any] = self.examples[split].labels
        return labels

    def card(self) -> str:
        """See `Task.card`."""
        return (
            "from headstart import pipeline\n\n"
            'classify = pipeline("image-classification", "FOLDER")\n'
            f'print(classify("photo.jpg"{", top_k=3" if self.data.kind == SINGLE else ""}))\n'
        )


class ImageClassification(LabelledImages, HeadTask):
    """A class, several labels or regression targets for each image, as the labels of the data
    say.
    """

    name: ClassVar[str] = "image-classification"
    column_roles: ClassVar[tuple[str, ...]] = IMAGE_ROLES
    option_names: ClassVar[tuple[str, ...]] = (
        "classes",
        "lanes",
        "look",
        "max_error",
        "stream",
        "window",
    )

    @classmethod
    def read(cls, path: str | Path, options: DataOptions) -> "ImageClassification":
        """See `Task.read`; the option "stream" reads shards from front to back."""
        if not options.extra.get("stream"):
            return cls(read_images(path, options), options)
        from headstart.tasks.streamed_images import StreamedClassification

        return StreamedClassification.read(path, options)

    def loss(self, model: nn.Module, inputs: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Task.loss`: that of the problem."""
        logits = model(pixel_values=inputs["pixel_values"]).logits.float()  # (B, V)
        return self.problem.compare(logits, inputs["targets"], self.recipe.label_smoothing)

    def finish(self, model: nn.Module) -> None:
        """See `Task.finish`."""
        self.problem.finish(head_of(model))

    # Features -------------------------------------------------------------------------------------

    def head(self, model: nn.Module) -> nn.Linear:
        """See `HeadTask.head`."""
        return head_of(model)

    def preprocessing(self) -> dict[str, Any]:
        """See `HeadTask.preprocessing`."""
        values: dict[str, Any] = self.processor.to_dict()
        return values

    def feature_digests(self) -> dict[str, list[str]]:
        """See `HeadTask.feature_digests`: of the files, each of which is opened for it."""
        return {split: list(self.digests(split)) for split in self.splits}

    def digests_at(self, split: str, rows: Sequence[int]) -> list[str]:
        """See `HeadTask.digests_at`: opens those that were not opened yet."""
        unopened = np.intersect1d(self.unopened(split), np.asarray(rows, dtype=np.int64))
        if len(unopened):
            self.open_images({split: unopened})
        return [self.digests_of[split][row] for row in rows]

    def feature_sizes(self, digests: Sequence[str]) -> list[int]:
        """See `HeadTask.feature_sizes`: all images cost the same."""
        return [1] * len(digests)

    def feature_inputs(self, digests: Sequence[str]) -> Iterator[tuple[list[str], Inputs]]:
        """See `HeadTask.feature_inputs`."""
        wanted = set(digests)
        sources = {
            digest: examples.images[row]
            for split, examples in self.examples.items()
            for row, digest in enumerate(self.digests_of[split])
            if digest in wanted
        }
        side = processor_side(self.processor)
        size = images_in_a_pass(3 * side * side) if side else 1
        for part in batched(digests, READ_TOGETHER):
            images = parallel(lambda d: self._pixels(sources[d], d), part, self.options.workers)
            for batch in batched(zip(part, images, strict=True), size):
                self.unread |= {d: each for d, each in batch if isinstance(each, str)}
                read = {d: each for d, each in batch if not isinstance(each, str)}
                yield list(read), {"pixel_values": torch.cat(list(read.values()))} if read else {}

    def _pixels(self, source: Source, digest: str) -> Tensor | str:
        """What the processor makes of an image, (1, 3, H, W), or why it cannot be read."""
        try:
            decoded = decode(source)
            pixels: Tensor = self.processor(decoded, return_tensors="pt")["pixel_values"]
        except InputError as error:
            return str(error)
        if digest not in self.hashes:
            self.hashes[digest] = small_hash(decoded)
        return pixels

    def sides(self) -> list[int]:
        """See `HeadTask.sides`: up to twice the usual side and twice the images' short side."""
        usual = processor_side(self.processor)
        if usual is None:
            return []
        facts = self.facts()
        most = 2 * min(facts.height, facts.width)
        larger = [8 * round(usual * factor / 8) for factor in LARGER_SIDES]
        return [usual, *(side for side in larger if usual < side <= most)]

    @property
    def side(self) -> int | None:
        """See `HeadTask.side`."""
        return self.recipe.crop

    def set_side(self, side: int | None) -> None:
        """See `HeadTask.set_side`."""
        if side is not None:
            set_processor_side(self.processor, side)
            self.recipe = replace(self.recipe, crop=side)

    def groups(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """See `HeadTask.groups`: images whose difference hashes are nearly the same, or that the
        data groups.
        """
        digests = [self.digests_of["train"][row] for row in rows]
        pairs = near_pairs(self.difference_hashes("train", rows), digests)
        own = self.examples["train"].groups
        return joined_groups(len(digests), pairs, None if own is None else own[rows])

    def difference_hashes(self, split: str, rows: NDArray[np.int64]) -> NDArray[np.uint64]:
        """Difference hashes (N,) of images of a split, cached on disk; see `small_hash`."""
        digests = [self.digests_of[split][row] for row in rows]
        images = self.examples[split].images
        sources = {digest: images[row] for digest, row in zip(digests, rows.tolist(), strict=True)}
        store = FeatureStore(HASHES)
        missing = [digest for digest in sources if digest not in store]
        if missing:
            unseen = [digest for digest in missing if digest not in self.hashes]
            found = parallel(lambda d: small_hash(decode(sources[d])), unseen, self.options.workers)
            with self.options.progress.counting("hashing images", len(unseen)) as seen:
                for digest, value in zip(unseen, found, strict=True):
                    self.hashes[digest] = value
                    seen(1)
            bits = np.array([self.hashes[digest] for digest in missing], dtype=">u8")
            table = np.unpackbits(bits.view(np.uint8).reshape(-1, 8), axis=1)  # (N, 64)
            store.add(missing, table.astype(np.float32))
        packed = np.packbits(store[digests].astype(np.uint8), axis=1)  # (N, 8)
        return np.ascontiguousarray(packed).view(">u8").ravel().astype(np.uint64)

    def drop_unread(self) -> None:
        """See `HeadTask.drop_unread`."""
        for split in self.splits:
            self.bad += [
                Bad(split, index, self.names(split)[index], self.unread[digest])
                for index, digest in enumerate(self.digests(split))
                if digest in self.unread
            ]
        self.drop_bad()

    # Evaluation -----------------------------------------------------------------------------------

    def evaluate(self, model: nn.Module, split: str, device: torch.device) -> Evaluation:
        """See `Task.evaluate`: `details` are logits or regression values (N, V) and labels."""

        @torch.inference_mode()
        def scores(batch: list[tuple[int, NDArray[np.uint8]]]) -> NDArray[np.float32]:
            images = np.stack([image for _, image in batch])  # (B, H, W, 3)
            pixels = self.normalize(torch.from_numpy(images).permute(0, 3, 1, 2).to(device))
            found: NDArray[np.float32] = model(pixel_values=pixels).logits.float().cpu().numpy()
            return found  # (B, V)

        batches = (batch for batch in self.image_batches(split) if batch)
        logits = list(forward_passes(scores, batches, model))
        return self.evaluate_scores(split, self.problem.in_units(np.concatenate(logits)))

    def evaluate_scores(self, split: str, scores: NDArray[np.float32]) -> Evaluation:
        """See `HeadTask.evaluate_scores`."""
        if not np.isfinite(scores).all():
            raise ConfigError(
                "the model's scores are not finite numbers: training diverged; try a smaller --lr"
            )
        labels = self.targets(split)
        metrics, interval = self.problem.measure(scores, labels)
        details = {"logits": scores, "labels": labels}
        return Evaluation(split, len(labels), metrics, interval, details)


def small_hash(pixels: NDArray[np.uint8]) -> int:
    """The difference hash of every k-th pixel, which takes as long for any size of image."""
    step = max(1, min(pixels.shape[:2]) // 128)
    return difference_hash(pixels[::step, ::step])


def head_of(model: nn.Module) -> nn.Linear:
    """The linear layer that gives the scores: the last one whose size is the number of classes."""
    config: Any = model.config
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    return [layer for layer in layers if layer.out_features == config.num_labels][-1]


def processor_side(processor: Any) -> int | None:
    """Side of the squares that a processor makes, where it makes squares of one size."""
    crops = bool(getattr(processor, "do_center_crop", False))
    size: dict[str, int] = processor.crop_size if crops else processor.size
    sides = set(size.values())
    # ConvNeXT's crops by itself
    cropped = crops or "height" in size or hasattr(processor, "crop_pct")
    return sides.pop() if len(sides) == 1 and cropped else None


def set_processor_side(processor: Any, side: int) -> None:
    """Makes a processor give squares of this side of the whole image.

    ConvNeXT's processor resizes and crops in its own way.
    """
    if hasattr(processor, "crop_pct"):
        processor.size = {"shortest_edge": side}
        return
    processor.do_resize = True
    processor.size = {"height": side, "width": side}
    processor.crop_size = {"height": side, "width": side}
    processor.do_center_crop = False
