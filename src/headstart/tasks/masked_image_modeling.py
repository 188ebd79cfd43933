"""Masked image modelling: BEiT's pretraining, on pictures without labels.

Each picture is shown in a few fixed random views (crop and mirror), whose codes the tokenizer gives
once and the disk keeps; masks are new every time.

Letters: B images, S side of what the network sees, h w sides of the grid of patches, V codes, N
    images of a split, K views of each.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from headstart.auto import AutoConfig, AutoImageProcessor, AutoModelForMaskedImageModeling
from headstart.checkpoint import atomic_write
from headstart.checkpoint.documents import read_json
from headstart.data.cache import Bad, PixelCache, check_bad, inspect, parallel, random_part, square
from headstart.data.images import read_pictures
from headstart.data.options import SPLITS, DataOptions
from headstart.data.sources.raw import Examples
from headstart.errors import ConfigError, DataError
from headstart.metrics.classification import wilson
from headstart.models.beit.image_tokenizer import DalleImageTokenizer
from headstart.models.beit.masking import blockwise_mask
from headstart.pipelines.masked_image_modeling import (
    TOKENIZER_FOLDER,
    as_tensor,
    codes_of,
    load_tokenizer,
    network_view,
    normalised,
    panels,
    tokenizer_view,
)
from headstart.recipe import Facts, Recipe
from headstart.report.classification import file_name
from headstart.report.page import Picture, Section, Table, picture_source
from headstart.report.segmentation import side_by_side
from headstart.tasks.base import Evaluation, Task

VIEWS = 4  # of each training picture
MASK_RATIO = 0.4  # of the patches, as in the paper
AREA, ASPECT = (0.2, 1.0), (3 / 4, 4 / 3)  # of a view, as a share of the picture
CHUNK = 64  # pictures that go through tokenizer or network together
SHOWN = 8

Pixels = NDArray[np.uint8]


class MaskedImageModeling(Task):
    """Codes of hidden patches: pictures of any data set that images are read from, or anywhere
    below a folder; labels are not looked at.

    Options of `DataOptions.extra`: "tokenizer" (a folder, a file or "dall-e"; default that of the
    model's folder), "views" (K), "mask_ratio", "scratch" (true draws the network's weights at
    random; the model then only gives its configuration).
    """

    name: ClassVar[str] = "masked-image-modeling"
    headline: ClassVar[str] = "code_accuracy"

    def __init__(self, data: dict[str, Examples], notes: list[str], options: DataOptions) -> None:
        self.data, self.notes, self.options = data, notes, options
        self.views, self.ratio = (
            int(options.extra.get("views", VIEWS)),
            float(options.extra.get("mask_ratio", MASK_RATIO)),
        )
        if self.views < 1 or not 0 < self.ratio < 1:
            raise ConfigError(
                f"views={self.views}, mask_ratio={self.ratio}; expected at least one view and a"
                " ratio between 0 and 1"
            )
        self.bad: list[Bad] = []
        self.digests: dict[str, list[str]] = {}
        self.sizes: dict[str, list[tuple[int, int]]] = {}
        for split, examples in data.items():
            found = list(parallel(inspect, examples.images, options.workers))
            self.bad += [
                Bad(split, i, examples.names[i], each)
                for i, each in enumerate(found)
                if isinstance(each, str)
            ]
            self.digests[split] = [each[0] if isinstance(each, tuple) else "" for each in found]
            self.sizes[split] = [each[1:] if isinstance(each, tuple) else (0, 0) for each in found]
        self.caches: dict[str, PixelCache] = {}
        self.codes: dict[str, NDArray[np.uint16]] = {}
        self.recipe, self.trains = Recipe(), True
        self.processor: Any = None
        self.config: Any = None
        self.tokenizer: Any = None

    @classmethod
    def read(cls, path: str | Path, options: DataOptions) -> Self:
        """See `Task.read`."""
        found = read_pictures(path, options)
        return cls(found.splits, found.notes, options)

    @property
    def splits(self) -> dict[str, int]:
        """See `Task.splits`."""
        return {split: len(examples) for split, examples in self.data.items()}

    @property
    def fingerprint(self) -> str:
        """See `Task.fingerprint`.

        Of the content and split of every picture, in their order, for views are drawn by number.
        """
        whole = hashlib.sha256(f"{self.views}".encode())
        for split in sorted(self.digests):
            whole.update(f"{split}:{','.join(self.digests[split])};".encode())
        return whole.hexdigest()

    def facts(self) -> Facts:
        """See `Task.facts`."""
        sizes = sorted(
            (size for size in self.sizes["train"] if size[0]), key=lambda size: size[0] * size[1]
        )
        if not sizes:
            check_bad(self.bad, False, sum(self.splits.values()))
        return Facts(self.splits["train"], 0, *sizes[len(sizes) // 2], task=self.name)

    def found(self) -> list[str]:
        """See `Task.found`."""
        parts = ", ".join(f"{count} {split}" for split, count in self.splits.items())
        facts = self.facts()
        lines = [
            f"{sum(self.splits.values())} pictures ({parts})",
            f"median picture {facts.width}x{facts.height} pixels",
        ]
        views = "1 fixed view" if self.views == 1 else f"{self.views} fixed views"
        lines.append(f"{views} of each, up to {self.ratio:.0%} of the patches hidden in blocks")
        if self.bad:
            lines.append(f"{len(self.bad)} of {sum(self.splits.values())} pictures cannot be read")
        return lines + self.notes

    # Model ----------------------------------------------------------------------------------------

    def build(self, name: str, recipe: Recipe, *, revision: str | None = None) -> nn.Module:
        """See `Task.build`."""
        config = AutoConfig.from_pretrained(name, revision=revision)
        self.tokenizer = self._load_tokenizer(name, config).eval()
        size = config.image_size
        self.recipe = replace(
            recipe, crop=recipe.crop or (size if isinstance(size, int) else min(size))
        )
        overrides: dict[str, Any] = {
            "image_size": self.recipe.crop,
            "use_mask_token": True,
            "vocab_size": self.tokenizer.vocab_size,
        }
        if recipe.drop_path is not None:
            overrides["drop_path_rate"] = recipe.drop_path
        model: nn.Module
        torch.manual_seed(recipe.seed)  # what the checkpoint lacks is drawn at random
        if self.options.extra.get("scratch"):
            model = AutoModelForMaskedImageModeling.from_config(
                type(config).from_dict(config.to_dict(), **overrides)
            )
        else:
            # then the last layer is made anew
            other_codes = config.vocab_size != self.tokenizer.vocab_size
            model = AutoModelForMaskedImageModeling.from_pretrained(
                name, revision=revision, ignore_mismatched_sizes=other_codes, **overrides
            )
        self.config = model.config
        self.processor = AutoImageProcessor.from_pretrained(name, revision=revision)
        assert self.recipe.crop is not None
        self.processor.size = {"height": self.recipe.crop, "width": self.recipe.crop}
        self.processor.crop_size, self.processor.do_center_crop = dict(self.processor.size), False
        asked = self.options.extra.get("tokenizer")
        self.config.image_tokenizer = (
            asked if asked in DalleImageTokenizer.published else TOKENIZER_FOLDER
        )
        return model

    def _load_tokenizer(self, name: str | Path, config: Any) -> Any:  # noqa: ANN401 - a configuration; a tokenizer
        asked = self.options.extra.get("tokenizer")
        if asked is not None:
            return DalleImageTokenizer.from_pretrained(asked)
        try:
            return load_tokenizer(name, config)
        except ConfigError as error:
            raise ConfigError(
                f"{error}: --option tokenizer=dall-e fetches OpenAI's, and examples/train_dvae.py"
                " trains a small one"
            ) from None

    def attach(self, name: str | Path) -> nn.Module:
        """See `Task.attach`."""
        model: nn.Module = AutoModelForMaskedImageModeling.from_pretrained(name)
        self.config, self.trains = model.config, False
        self.processor, self.tokenizer = (
            AutoImageProcessor.from_pretrained(name),
            self._load_tokenizer(name, model.config).eval(),
        )
        return model

    def save(self, folder: Path) -> None:
        """See `Task.save`: the processor, and the tokenizer unless it is a published one."""
        self.processor.save_pretrained(folder)
        if self.config.image_tokenizer not in DalleImageTokenizer.published:
            self.tokenizer.save_pretrained(folder / TOKENIZER_FOLDER)

    # Pixels and codes -----------------------------------------------------------------------------

    def prepare(self, folder: Path | None, splits: tuple[str, ...] = SPLITS) -> None:
        """See `Task.prepare`: pictures as squares, and the codes of every view."""
        self.bad = [each for each in self.bad if each.split in splits]
        total = sum(count for split, count in self.splits.items() if split in splits)
        everything = list(self.bad)
        for split in splits:
            if split in self.data:
                self._drop(split, {each.index for each in self.bad if each.split == split})
                side = self.recipe.resize or self.recipe.crop or max(self.config.image)
                file = folder / f"{split}.npy" if folder else None
                cache = PixelCache(
                    self.data[split],
                    side,
                    partial(square, side=side, resample=self.processor.resample),
                    file,
                )
                failed = dict(cache.fill(self.options.workers))
                everything += [
                    Bad(split, i, self.data[split].names[i], reason) for i, reason in failed.items()
                ]
                if failed:
                    cache.keep(
                        np.array(
                            [i for i in range(len(self.data[split])) if i not in failed],
                            dtype=np.int64,
                        )
                    )
                self._drop(split, set(failed))
                self.caches[split] = cache
        check_bad(everything, self.options.skip_bad, total)
        if everything:
            self.notes.append(f"{len(everything)} unreadable pictures left out")
        for split in self.caches:
            if not self.splits[split]:
                raise DataError(f"no readable {split} picture is left")
            self.codes[split] = self._codes(split, folder)

    def _drop(self, split: str, out: set[int]) -> None:
        kept = [i for i in range(len(self.data[split])) if i not in out]
        self.data[split], self.digests[split] = (
            self.data[split].take(kept),
            [self.digests[split][i] for i in kept],
        )
        self.sizes[split] = [self.sizes[split][i] for i in kept]

    def view(self, split: str, index: int, number: int) -> Pixels:
        """View `number` of a picture, (H, W, 3): a random part, perhaps mirrored, always the same.

        When judging, all of it.
        """
        picture = self.caches[split][index]
        if split != "train" or not self.trains or self.recipe.augment == "none":
            return picture
        rng = np.random.default_rng([self.recipe.seed, index, number, 0x71E3])
        if self.recipe.augment != "flip":
            rows, columns = random_part(
                picture.shape[0], picture.shape[1], rng, area=AREA, aspect=ASPECT
            )
            picture = picture[rows, columns]
        return picture[:, ::-1] if rng.random() < 0.5 else picture

    def _codes(self, split: str, folder: Path | None) -> NDArray[np.uint16]:
        """Codes of every view, (N, K, h, w).

        From the disk if they are of these views and this tokenizer, else made now.
        """
        views = self.views if split == "train" and self.trains else 1
        shape = (self.splits[split], views, *self.config.grid)
        key = {
            "digests": self.digests[split],
            "shape": list(shape),
            "tokenizer": self._tokenizer_digest(),
            "seed": self.recipe.seed,
        }
        key |= {
            "augment": self.recipe.augment,
            "side": self.caches[split].side,
            "resample": int(self.processor.resample),
        }
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        file, note = (
            (folder / f"{split}-codes.npy", folder / f"{split}-codes.json")
            if folder
            else (None, None)
        )
        if file is not None and note is not None and note.is_file() and file.is_file():
            if read_json(note) == digest:
                kept: NDArray[np.uint16] = np.load(file, mmap_mode="r", allow_pickle=False)
                if kept.shape == shape:
                    return kept
            note.unlink()
        if file is None or note is None:
            return self._fill(split, np.empty(shape, dtype=np.uint16))
        file.parent.mkdir(parents=True, exist_ok=True)
        codes = self._fill(
            split, np.lib.format.open_memmap(file, mode="w+", dtype=np.uint16, shape=shape)
        )
        codes.flush()  # type: ignore[attr-defined]
        atomic_write(note, json.dumps(digest))  # last: its presence says that the codes are whole
        return codes

    def _fill(self, split: str, codes: NDArray[np.uint16]) -> NDArray[np.uint16]:
        """Writes the codes of every view into an array (N, K, h, w)."""
        flat = codes.reshape(-1, *self.config.grid)  # (N * K, h, w)
        for start, batch in self._chunks(split, codes.shape[1]):
            flat[start : start + len(batch)] = batch.cpu().numpy()
        return codes

    def _chunks(self, split: str, views: int) -> Iterator[tuple[int, Tensor]]:
        """Codes of consecutive views, made on the accelerator where there is one."""

        def one(number: int) -> Pixels:
            return tokenizer_view(self.view(split, *divmod(number, views)), self.config.grid)

        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        tokenizer = self.tokenizer.to(device)
        count = self.splits[split] * views
        for start in range(0, count, CHUNK):
            numbers = range(start, min(start + CHUNK, count))
            yield start, codes_of(tokenizer, parallel(one, numbers, self.options.workers), device)
        self.tokenizer = tokenizer.cpu()

    def _tokenizer_digest(self) -> str:
        whole = hashlib.sha256()
        for name, tensor in sorted(self.tokenizer.encoder.state_dict().items()):
            whole.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
        return whole.hexdigest()

    # Training -------------------------------------------------------------------------------------

    def mask(self, rng: np.random.Generator) -> NDArray[np.bool_]:
        """A new mask, (h, w)."""
        height, width = self.config.grid
        mask: NDArray[np.bool_] = blockwise_mask(
            height, width, rng, int(self.ratio * height * width)
        )
        return mask

    def example(self, index: int, rng: np.random.Generator) -> dict[str, Tensor]:
        """See `Task.example`: image (3, S, S) uint8, mask (h, w) and codes (h, w)."""
        number = int(rng.integers(0, self.views))
        picture = network_view(
            self.view("train", index, number), self.config.image, self.processor.resample
        )
        return {
            "image": torch.from_numpy(picture.transpose(2, 0, 1).copy()),
            "mask": torch.from_numpy(self.mask(rng)),
            "codes": torch.from_numpy(self.codes["train"][index, number].astype(np.int64)),
        }

    def weight(self, batch: dict[str, Tensor]) -> float:
        """See `Task.weight`: the masked patches."""
        return float(batch["mask"].sum().clamp(min=1))

    def micro(
        self, batch: dict[str, Tensor], rows: slice, device: torch.device
    ) -> dict[str, Tensor]:
        """See `Task.micro`: pixel_values (B, 3, S, S), mask and codes (B, h * w)."""
        moved = {key: value[rows].to(device, non_blocking=True) for key, value in batch.items()}
        return {
            "pixel_values": normalised(moved["image"], self.processor),
            "bool_masked_pos": moved["mask"].flatten(1),
            "codes": moved["codes"].flatten(1),
        }

    def loss(self, model: nn.Module, inputs: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Task.loss`: cross-entropy of the codes of masked patches, and how many are guessed."""
        mask = inputs["bool_masked_pos"]
        logits = (
            model(pixel_values=inputs["pixel_values"], bool_masked_pos=mask).logits[mask].float()
        )  # (masked, V)
        true = inputs["codes"][mask]  # (masked,)
        return F.cross_entropy(logits, true, reduction="sum"), {
            "code_accuracy": (logits.detach().argmax(1) == true).sum()
        }

    # Judging --------------------------------------------------------------------------------------

    def _whole(self, split: str, index: int) -> Pixels:
        # (S, S, 3)
        return network_view(self.caches[split][index], self.config.image, self.processor.resample)

    @torch.inference_mode()
    def evaluate(self, model: nn.Module, split: str, device: torch.device) -> Evaluation:
        """See `Task.evaluate`, on whole pictures with the same masks every time.

        `details` are guessed codes and masks (N, h, w).
        """
        count = self.splits[split]
        guessed = np.zeros((count, *self.config.grid), dtype=np.int64)
        # (N, h, w)
        masks = np.stack([self.mask(np.random.default_rng([7, index])) for index in range(count)])
        loss, masked = 0.0, max(1, int(masks.sum()))
        for start in range(0, count, CHUNK):
            rows = slice(start, min(start + CHUNK, count))
            pictures = [self._whole(split, index) for index in range(rows.start, rows.stop)]
            pixels, hidden = (
                normalised(as_tensor(pictures, device), self.processor),
                torch.from_numpy(masks[rows]).to(device),
            )
            # (B, h * w, V)
            logits = model(pixel_values=pixels, bool_masked_pos=hidden.flatten(1)).logits.float()
            guessed[rows] = logits.argmax(-1).view(hidden.shape).cpu().numpy()
            true = torch.from_numpy(self.codes[split][rows, 0].astype(np.int64)).to(device)
            loss += float(F.cross_entropy(logits[hidden.flatten(1)], true[hidden], reduction="sum"))
        true_codes = np.asarray(self.codes[split][:, 0])
        right = int((guessed == true_codes)[masks].sum())
        common = float(np.bincount(true_codes[masks], minlength=1).max() / masked)
        metrics = {
            "code_accuracy": right / masked,
            "most_common_code_accuracy": common,
            "loss": loss / masked,
        }
        return Evaluation(
            split, count, metrics, wilson(right, masked), {"guessed": guessed, "masks": masks}
        )

    def report(self, evaluation: Evaluation) -> list[Section]:
        """See `Task.report`."""
        split, metrics = evaluation.split, evaluation.metrics
        codes = np.asarray(self.codes[split][:, 0]).astype(np.int64)  # (N, h, w)
        share = np.bincount(codes.ravel(), minlength=self.tokenizer.vocab_size) / codes.size
        used = float(np.exp(-(share[share > 0] * np.log(share[share > 0])).sum()))
        rows = [
            ["this model", f"{metrics['code_accuracy']:.1%}"],
            ["always the most common code", f"{metrics['most_common_code_accuracy']:.1%}"],
            ["chance", f"{1 / self.tokenizer.vocab_size:.2%}"],
        ]
        text = (
            f"Of {self.tokenizer.vocab_size} codes, the pictures use as many as {used:.0f} evenly"
            " used ones would be."
        )
        sections = [Section("Guessing hidden codes", text, table=Table(("", "right codes"), rows))]
        shown = []
        for index in (
            np.linspace(0, len(codes) - 1, min(SHOWN, len(codes))).round().astype(int).tolist()
        ):
            picture = self._whole(split, index)
            mask, true = evaluation.details["masks"][index], torch.from_numpy(codes[index])
            parts = panels(
                picture,
                mask,
                true,
                torch.from_numpy(evaluation.details["guessed"][index]),
                self.tokenizer,
            )
            right = (
                float((evaluation.details["guessed"][index] == codes[index])[mask].mean())
                if mask.any()
                else 0.0
            )
            name = file_name(self.data[split].names[index])
            shown.append(
                Picture(
                    picture_source(side_by_side(parts, gap=2), 900),
                    f"{name}: {right:.0%} of the hidden codes guessed",
                )
            )
        text = (
            "The picture, what the mask leaves of it, the picture of visible and guessed codes, and"
            " that of the true codes."
        )
        return [*sections, Section("Reconstructions", text, pictures=shown, wide=True)]

    def card(self) -> str:
        """See `Task.card`."""
        return (
            'from headstart import pipeline\n\nimagine = pipeline("masked-image-modeling",'
            ' "FOLDER")\nimagine.write("photo.jpg", Path("photo"))  # picture, mask and'
            ' reconstruction side by side\n\n# headstart train photos/ --model "FOLDER" --out'
            " runs/classifier   goes on to classification\n"
        )
