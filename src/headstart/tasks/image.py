"""What the image tasks share: unreadable files, sizes, normalization, the processor.

Letters: B images, H W sides of what the network sees, N images of a split.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headstart.data.cache import Bad, PixelCache, check_bad, inspect_all
from headstart.data.options import SPLITS, DataOptions
from headstart.data.sources.raw import take
from headstart.errors import DataError
from headstart.pipelines.base import batched
from headstart.recipe import Facts, Recipe
from headstart.tasks.base import Task

BATCH = 32  # images evaluated together
UNOPENED = -1  # height and width of an image that was not opened yet


class ImageTask(Task):
    """Base of the image tasks: a task says what belongs to an image and what the network gives.

    Args:
        examples: Images by split; anything with `names` and `take`.
        notes: What the user should know about them; tasks add to it.
        options: How they were read.
    """

    unit: ClassVar[str] = "img"
    unreadable: ClassVar[str] = "unreadable images"  # in the note about those that were left out

    def __init__(self, examples: dict[str, Any], notes: list[str], options: DataOptions) -> None:
        self.examples, self.notes, self.options = examples, notes, options
        self.bad: list[Bad] = []  # found since the last `drop_bad`
        self.skipped: list[Bad] = []
        self.digests_of: dict[str, list[str]] = {}
        # (N, 2): height and width, 0 where unknown, UNOPENED where not looked for yet
        self.sizes: dict[str, NDArray[np.int64]] = {}
        self.caches: dict[str, PixelCache] = {}
        self.recipe, self.trains = Recipe(), True
        self.processor: Any = None

    @property
    def splits(self) -> dict[str, int]:
        """See `Task.splits`."""
        return {split: len(examples) for split, examples in self.examples.items()}

    def names(self, split: str) -> Sequence[str]:
        """See `Task.names`."""
        names: Sequence[str] = self.examples[split].names
        return names

    def digests(self, split: str) -> Sequence[str]:
        """See `Task.digests`."""
        return self.digests_of[split]

    def inspect(self, most: int | None = None) -> None:
        """Reads content hash and size of images; those without a header are bad.

        Args:
            most: About as many images are opened, a random choice of each split; None opens every
                one. The others are opened when they are needed.
        """
        total, chosen = sum(self.splits.values()), {}
        for split, count in self.splits.items():
            self.digests_of[split] = [""] * count
            self.sizes[split] = np.full((count, 2), UNOPENED)
            rng = np.random.default_rng([self.options.seed, 0x100C])
            part = count if most is None else max(1, round(most * count / total))
            chosen[split] = np.sort(rng.permutation(count)[:part])
        self.open_images(chosen)

    def open_images(self, rows: Mapping[str, NDArray[np.int64]]) -> None:
        """Reads content hash and size of some images of each split."""
        total = sum(map(len, rows.values()))
        with self.options.progress.counting("reading images", total, self.unit) as seen:
            for split, chosen in rows.items():
                images = take(self.examples[split].images, chosen)
                results = inspect_all(images, self.options.workers, seen)
                self.sizes[split][chosen] = 0
                for index, each in zip(chosen.tolist(), results, strict=True):
                    if isinstance(each, str):
                        self.bad.append(Bad(split, index, self.names(split)[index], each))
                        continue
                    digest, *size = each
                    self.digests_of[split][index] = digest
                    self.sizes[split][index] = size

    @property
    def looks_at_a_part(self) -> bool:
        """See `Task.looks_at_a_part`."""
        return any(len(self.unopened(split)) for split in self.splits)

    def unopened(self, split: str) -> NDArray[np.int64]:
        """Numbers of the images of a split that were not opened yet."""
        return np.flatnonzero(self.sizes[split][:, 0] == UNOPENED)

    def facts(self) -> Facts:
        """See `Task.facts`; sizes are those of the median training image by area."""
        sizes = self.sizes["train"][self.sizes["train"].min(axis=1) > 0]
        unopened = self.unopened("train")
        if not len(sizes) and len(unopened):  # none of those that were opened can be read
            self.open_images({"train": unopened})
            sizes = self.sizes["train"][self.sizes["train"].min(axis=1) > 0]
        if not len(sizes):
            check_bad(self.bad, False, sum(self.splits.values()))
        order = np.argsort(sizes.prod(axis=1), kind="stable")
        height, width = sizes[order[len(sizes) // 2]].tolist()
        return Facts(len(self.examples["train"]), height=height, width=width, task=self.name)

    def keep(self, split: str, indices: NDArray[np.int64]) -> None:
        """Leaves out all other images of a split, in everything that is in its order."""
        self.examples[split] = self.examples[split].take(indices)
        self.sizes[split] = self.sizes[split][indices]
        self.digests_of[split] = [self.digests_of[split][i] for i in indices]
        if split in self.caches:
            self.caches[split].keep(indices)

    def subset(self, split: str, indices: NDArray[np.int64]) -> Self:
        """See `Task.subset`."""
        part = copy.copy(self)
        part.notes, part.bad, part.skipped = list(self.notes), [], []
        for name, value in vars(self).items():
            if isinstance(value, dict):  # what is there by split
                setattr(part, name, dict(value))
        if split in self.caches:
            part.caches[split] = copy.copy(self.caches[split])
        part.keep(split, indices)
        return part

    def drop_known_bad(self, split: str) -> None:
        """Leaves out the images of a split that are known to be bad."""
        out = {each.index for each in self.bad if each.split == split}
        self.skipped += [each for each in self.bad if each.split == split]
        self.bad = [each for each in self.bad if each.split != split]
        if out:
            kept = [i for i in range(len(self.examples[split])) if i not in out]
            self.keep(split, np.array(kept, dtype=np.int64))

    def drop_bad(self, splits: Sequence[str] = SPLITS) -> None:
        """Stops over unreadable images, or leaves them out where `skip_bad` allows it.

        Raises:
            DataError: Images cannot be read, or no training image is left.
        """
        total = sum(count for split, count in self.splits.items() if split in splits)
        everything = self.skipped + self.bad
        check_bad(
            everything, self.options.skip_bad, total + len(self.skipped), begun=self.looks_at_a_part
        )
        for split in splits:
            if split in self.examples:
                self.drop_known_bad(split)
        if everything:
            self.notes.append(f"{len(everything)} {self.unreadable} left out")
        for split in splits:
            if self.splits.get(split) == 0:
                raise DataError(f"no readable {split} image is left")

    def fill_caches(self, folder: Path | None, splits: Sequence[str]) -> None:
        """Decodes every image of these splits, and drops what cannot be read."""
        self.bad = [each for each in self.bad if each.split in splits]
        present = [split for split in splits if split in self.examples]
        # What was not opened is decoded when it is needed, and may be unreadable then.
        later = {split for split in present if len(self.unopened(split))}
        total = sum(self.splits[split] for split in present if split not in later)
        with self.options.progress.counting("decoding images", total, self.unit) as seen:
            for split in present:
                self.drop_known_bad(split)
                cache = self.cache(split, folder / f"{split}.npy" if folder else None)
                failed = cache.fill(self.options.workers, seen, lazily=split in later)
                self.bad += [Bad(split, i, cache.examples.names[i], reason) for i, reason in failed]
                self.caches[split] = cache
                self.notes += cache.notes
                for note in cache.notes:
                    self.options.progress.report(note)
        self.drop_bad(splits)

    def image_batches(self, split: str) -> Iterator[list[tuple[int, NDArray[np.uint8]]]]:
        """Images of a split in batches with their numbers; shows how many are evaluated.

        Threads read ahead of the network. Those that cannot be read are dropped at the end.

        Raises:
            DataError: Images cannot be read, and `skip_bad` does not leave them out.
        """
        names, count, bad = self.names(split), self.splits[split], list[Bad]()
        images = enumerate(self.caches[split].stream(self.options.workers))
        with self.options.progress.counting("evaluating", count, self.unit) as seen:
            for batch in batched(images, BATCH):
                bad += [Bad(split, i, names[i], why) for i, why in batch if isinstance(why, str)]
                yield [(i, image) for i, image in batch if not isinstance(image, str)]
                seen(len(batch))
        if bad:
            self.bad += bad
            self.drop_bad((split,))

    def cache(self, split: str, file: Path | None) -> PixelCache:
        """The pixels of a split, to be filled; a task that caches none overrides `prepare`."""
        raise NotImplementedError

    def square_side(self, recipe: Recipe, config: Any) -> Recipe:
        """The recipe with the side of the squares that a transformer sees."""
        size = config.image_size
        return replace(recipe, crop=recipe.crop or (size if isinstance(size, int) else min(size)))

    def normalize(self, images: Tensor) -> Tensor:
        """Values as the network takes them, of uint8 (B, 3, H, W)."""
        processor = self.processor
        values: Tensor = images.float() * processor.rescale_factor
        if not processor.do_normalize:
            return values
        mean, std = (
            torch.tensor(v, device=images.device).view(3, 1, 1)
            for v in (processor.image_mean, processor.image_std)
        )
        return (values - mean) / std

    def save(self, folder: Path) -> None:
        """See `Task.save`."""
        self.processor.save_pretrained(folder)
