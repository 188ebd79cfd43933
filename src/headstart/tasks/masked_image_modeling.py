"""Masked image modeling: BEiT's pretraining, on images without labels.

Each image is shown in a few fixed random views (crop and mirror), whose codes the tokenizer gives
once and the disk caches; masks are new every time.

Letters: B images, S side of what the network sees, h w sides of the grid of patches, V codes, N
    images of a split, K views of each.
"""

import hashlib
import json
from collections.abc import Iterator
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
from headstart.data.cache import PixelCache, parallel, random_part, square
from headstart.data.examples import Examples
from headstart.data.images import read_unlabeled_images
from headstart.data.options import SPLITS, DataOptions
from headstart.errors import ConfigError
from headstart.metrics.classification import wilson
from headstart.models.beit.image_tokenizer import DalleImageTokenizer
from headstart.models.beit.masking import blockwise_mask
from headstart.pipelines.masked_image_modeling import (
    TOKENIZER_FOLDER,
    as_tensor,
    codes_of,
    load_tokenizer,
    network_view,
    tokenizer_view,
)
from headstart.recipe import Recipe
from headstart.tasks.base import Evaluation
from headstart.tasks.image import ImageTask

VIEWS = 4  # of each training image
MASK_RATIO = 0.4  # of the patches, as in the paper
AREA, ASPECT = (0.2, 1.0), (3 / 4, 4 / 3)  # of a view: fraction of the image, and width / height
CHUNK = 64  # images that go through tokenizer or network together

Pixels = NDArray[np.uint8]


class MaskedImageModeling(ImageTask):
    """Codes of hidden patches, of images of any data set or anywhere below a folder.

    Options of `DataOptions.extra`: "tokenizer" (a folder, a file or "dall-e"; default that of the
    model's folder), "views" (K), "mask_ratio", "scratch" (true initializes the network randomly;
    the model then only gives its configuration).
    """

    name: ClassVar[str] = "masked-image-modeling"
    column_roles: ClassVar[tuple[str, ...]] = ("image", "split")
    option_names: ClassVar[tuple[str, ...]] = ("mask_ratio", "scratch", "tokenizer", "views")
    headline: ClassVar[str] = "code_accuracy"

    def __init__(self, data: dict[str, Examples], notes: list[str], options: DataOptions) -> None:
        super().__init__(data, notes, options)
        self.views = int(options.extra.get("views", VIEWS))
        self.ratio = float(options.extra.get("mask_ratio", MASK_RATIO))
        if self.views < 1 or not 0 < self.ratio < 1:
            raise ConfigError(
                f"views={self.views}, mask_ratio={self.ratio}; expected at least one view and a"
                " ratio between 0 and 1"
            )
        self.inspect()
        self.codes: dict[str, NDArray[np.uint16]] = {}
        self.config: Any = None
        self.tokenizer: Any = None

    @classmethod
    def read(cls, path: str | Path, options: DataOptions) -> Self:
        """See `Task.read`."""
        found = read_unlabeled_images(path, options)
        return cls(found.splits, found.notes, options)

    @property
    def fingerprint(self) -> str:
        """See `Task.fingerprint`.

        Of the content and split of every image, in their order, since views depend on the index.
        """
        whole = hashlib.sha256(f"{self.views}".encode())
        for split in sorted(self.digests_of):
            whole.update(f"{split}:{','.join(self.digests_of[split])};".encode())
        return whole.hexdigest()

    def found(self) -> list[str]:
        """See `Task.found`."""
        facts, total = self.facts(), sum(self.splits.values())
        parts = ", ".join(f"{count} {split}" for split, count in self.splits.items())
        views = "1 fixed view" if self.views == 1 else f"{self.views} fixed views"
        lines = [
            f"{total} images ({parts})",
            f"median image {facts.width}x{facts.height} pixels",
            f"{views} of each, up to {self.ratio:.0%} of the patches hidden in blocks",
        ]
        if self.bad:
            lines.append(f"{len(self.bad)} of {total} images cannot be read")
        return lines + self.notes

    # Model ----------------------------------------------------------------------------------------

    def build(self, name: str, recipe: Recipe, *, revision: str | None = None) -> nn.Module:
        """See `Task.build`."""
        config = AutoConfig.from_pretrained(name, revision=revision)
        self.tokenizer = self._load_tokenizer(name, config).eval()
        self.recipe = self.square_side(recipe, config)
        overrides: dict[str, Any] = {
            "image_size": self.recipe.crop,
            "use_mask_token": True,
            "vocab_size": self.tokenizer.vocab_size,
        }
        if recipe.drop_path is not None:
            overrides["drop_path_rate"] = recipe.drop_path
        model: nn.Module
        torch.manual_seed(recipe.seed)  # what the checkpoint lacks is randomly initialized
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
        requested = self.options.extra.get("tokenizer")
        self.config.image_tokenizer = (
            requested if requested in DalleImageTokenizer.published else TOKENIZER_FOLDER
        )
        return model

    def _load_tokenizer(self, name: str | Path, config: Any) -> Any:
        requested = self.options.extra.get("tokenizer")
        if requested is not None:
            return DalleImageTokenizer.from_pretrained(requested)
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
        """See `Task.prepare`: images as squares, and the codes of every view."""
        self.fill_caches(folder, splits)
        for split in self.caches:
            self.codes[split] = self._codes(split, folder)

    def cache(self, split: str, file: Path | None) -> PixelCache:
        """See `ImageTask.cache`."""
        side = self.recipe.resize or self.recipe.crop or max(self.config.image)
        view = partial(square, side=side, resample=self.processor.resample)
        return PixelCache(self.examples[split], side, view, file)

    def view(self, split: str, index: int, number: int) -> Pixels:
        """View `number` of an image, (H, W, 3): a random part, perhaps mirrored, always the same.

        For evaluation, all of it.
        """
        image = self.caches[split][index]
        if split != "train" or not self.trains or self.recipe.augment == "none":
            return image
        rng = np.random.default_rng([self.recipe.seed, index, number, 0x71E3])
        if self.recipe.augment != "flip":
            height, width, _ = image.shape
            rows, columns = random_part(height, width, rng, area=AREA, aspect=ASPECT)
            image = image[rows, columns]
        return image[:, ::-1] if rng.random() < 0.5 else image

    def _codes(self, split: str, folder: Path | None) -> NDArray[np.uint16]:
        """Codes of every view, (N, K, h, w).

        From the disk if they are of these views and this tokenizer, else made now.
        """
        views = self.views if split == "train" and self.trains else 1
        shape = (self.splits[split], views, *self.config.grid)
        key = {
            "digests": self.digests_of[split],
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
        with self.options.progress.counting("codes of views", count, "views") as seen:
            for start in range(0, count, CHUNK):
                numbers = range(start, min(start + CHUNK, count))
                views_read = parallel(one, numbers, self.options.workers)
                yield start, codes_of(tokenizer, views_read, device)
                seen(len(numbers))
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
        view = self.view("train", index, number)
        image = network_view(view, self.config.image, self.processor.resample)
        return {
            "image": torch.from_numpy(image.transpose(2, 0, 1).copy()),
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
            "pixel_values": self.normalize(moved["image"]),
            "bool_masked_pos": moved["mask"].flatten(1),
            "codes": moved["codes"].flatten(1),
        }

    def loss(self, model: nn.Module, inputs: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Task.loss`: cross-entropy of the codes of masked patches, and how many are right."""
        mask = inputs["bool_masked_pos"]
        logits = (
            model(pixel_values=inputs["pixel_values"], bool_masked_pos=mask).logits[mask].float()
        )  # (masked, V)
        true = inputs["codes"][mask]  # (masked,)
        return F.cross_entropy(logits, true, reduction="sum"), {
            "code_accuracy": (logits.detach().argmax(1) == true).sum()
        }

    # Evaluation -----------------------------------------------------------------------------------

    def subset(self, split: str, indices: NDArray[np.int64]) -> Self:
        """See `Task.subset`."""
        part = super().subset(split, indices)
        part.codes[split] = self.codes[split][indices]
        return part

    def whole(self, split: str, index: int) -> Pixels:
        """What the network sees of an image in evaluation, (S, S, 3)."""
        return network_view(self.caches[split][index], self.config.image, self.processor.resample)

    @torch.inference_mode()
    def evaluate(self, model: nn.Module, split: str, device: torch.device) -> Evaluation:
        """See `Task.evaluate`, on whole images with the same masks every time.

        `details` are predicted codes, true codes and masks (N, h, w).
        """
        count = self.splits[split]
        predicted = np.zeros((count, *self.config.grid), dtype=np.int64)
        # (N, h, w)
        masks = np.stack([self.mask(np.random.default_rng([7, index])) for index in range(count)])
        loss, masked = 0.0, max(1, int(masks.sum()))
        for start in range(0, count, CHUNK):
            rows = slice(start, min(start + CHUNK, count))
            images = [self.whole(split, index) for index in range(rows.start, rows.stop)]
            pixels = self.normalize(as_tensor(images, device))
            hidden = torch.from_numpy(masks[rows]).to(device)
            # (B, h * w, V)
            logits = model(pixel_values=pixels, bool_masked_pos=hidden.flatten(1)).logits.float()
            predicted[rows] = logits.argmax(-1).view(hidden.shape).cpu().numpy()
            true = torch.from_numpy(self.codes[split][rows, 0].astype(np.int64)).to(device)
            loss += float(F.cross_entropy(logits[hidden.flatten(1)], true[hidden], reduction="sum"))
        true_codes = np.asarray(self.codes[split][:, 0])
        right = int((predicted == true_codes)[masks].sum())
        common = float(np.bincount(true_codes[masks], minlength=1).max() / masked)
        metrics = {
            "code_accuracy": right / masked,
            "most_common_code_accuracy": common,
            "loss": loss / masked,
        }
        details = {"predicted": predicted, "masks": masks, "codes": true_codes.astype(np.int64)}
        return Evaluation(split, count, metrics, wilson(right, masked), details)

    def card(self) -> str:
        """See `Task.card`."""
        return (
            "from headstart import pipeline\n\n"
            'reconstruct = pipeline("masked-image-modeling", "FOLDER")\n'
            'reconstruct.write("photo.jpg", Path("photo"))'
            "  # image, mask and reconstruction side by side\n\n"
            '# headstart train photos/ --model "FOLDER" --out runs/classifier'
            "   goes on to classification\n"
        )
