"""Images → classes, several classes, or regression targets."""

import logging
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from headstart.errors import ConfigError, InputError
from headstart.nn.hooks import inputs_of
from headstart.pipelines.base import ShortRepr, batched, is_one_image, load_both
from headstart.pipelines.confidence import UNKNOWN, believed, folder_of, minimums_of
from headstart.pipelines.unknown import LEVEL, Reference, head_of

logger = logging.getLogger("headstart")


class ImageClassificationPipeline(ShortRepr):
    """Classifies images, with probabilities; or predicts regression targets.

    Args:
        model: A folder, a Hub id, an authors' name, or a model object.
        image_processor: Processor for a model object; default the one beside the model.
        device: Where to compute.
        model_kwargs: Arguments of `from_pretrained`.
        top_k: Labels to return for each image; None returns five, or for a multi-label model all
            that are probable.
        batch_size: Images in one forward pass.
        label_threshold: Minimum probability of a returned label of a multi-label model, where
            `top_k` is None.
        refuse: Whether to answer "I don't know" below the confidence that training found for its
            target error rate (`headstart train --max-error`), and to an image whose p-value of the
            known classes is below 5 %; a number is another rate, such as 0.01.

    Where training has kept what its examples look like, each label has a `p_value`: the fraction of
    images of the known classes that are at least as far from the nearest class. Where the
    model was evaluated, each label has `in_set`: whether it belongs to the conformal set, which
    contains the true class of 90 % of new images.
    Probabilities are those after the temperature scaling that training found to help, if any.
    """

    task = "image-classification"

    def __init__(
        self,
        model: Any,
        *,
        image_processor: Any = None,
        device: Any = None,
        model_kwargs: Mapping[str, Any] | None = None,
        top_k: int | None = None,
        batch_size: int = 8,
        label_threshold: float = 0.5,
        refuse: bool | float = False,
    ) -> None:
        self.temperature, self.threshold = believed(model, refuse)
        self.refuses = refuse is not False
        folder = folder_of(model)
        self.reference = None if folder is None else Reference.read(folder)
        self.minimums = minimums_of(folder)
        self.model, self.image_processor = load_both(
            model,
            "AutoModelForImageClassification",
            image_processor,
            device,
            model_kwargs=model_kwargs,
        )
        self.top_k, self.batch_size, self.label_threshold = top_k, batch_size, label_threshold
        self.kind = self.model.config.problem_type
        self._check_companions(folder)

    def __call__(self, images: Any, top_k: int | None = None, batch_size: int | None = None) -> Any:
        """Labels and probabilities, most probable first; of a regression model names and values.

        Args:
            images: A path, bytes, PIL image or array (H, W, 3), or a list (or iterator) of them.
            top_k: Labels to return for each image; at most all of the model's.
            batch_size: Images in one forward pass.

        Returns:
            A list of `{"label": str, "score": float}` for one image, with `"p_value"` and
            `"in_set"` where they are known, and a list of such lists for many.

        Raises:
            InputError: An image that cannot be read; the message names it.
        """
        if top_k is not None and top_k < 1:
            raise InputError(f"top_k={top_k}; at least one label has to be given")
        if is_one_image(images):
            return next(self.stream([images], top_k, 1))
        return list(self.stream(images, top_k, batch_size))

    def _check_companions(self, folder: Path | None) -> None:
        """Refuses files that belong to another head."""
        outputs = self.model.config.num_labels
        if self.minimums is not None and len(self.minimums) != outputs:
            raise ConfigError(
                f"{folder}/confidence.json has {len(self.minimums)} minimums for {outputs} classes"
            )
        layer = head_of(self.model, outputs)
        if self.reference is None:
            return
        if layer is None:
            self.reference = None
            if self.refuses:
                logger.warning(
                    "%s is optimized and gives no features: there are no p-values, and only the"
                    " confidence decides what is refused",
                    folder,
                )
            return
        if layer.in_features != len(self.reference.mean):
            raise ConfigError(
                f"{folder}/unknown.safetensors is of {len(self.reference.mean)} features, and the"
                f" head reads {layer.in_features}; remove the file, or train again"
            )

    def stream(
        self, images: Iterable[Any], top_k: int | None = None, batch_size: int | None = None
    ) -> Iterator[list[dict[str, Any]]]:
        """As `__call__` for many images, one result at a time, without holding all in memory."""
        for batch in batched(images, self.batch_size if batch_size is None else batch_size):
            rows, p_values = self.compared([self.pixel_values(image) for image in batch])
            for row, p_value in zip(rows, p_values, strict=True):
                labels, refused = self.answer(row, top_k, p_value)
                yield [labels[0] | {"label": UNKNOWN}] if refused else labels

    def answer(
        self, row: Tensor, top_k: int | None = None, p_value: float | None = None
    ) -> tuple[list[dict[str, Any]], bool]:
        """Labels and scores of one image's probabilities (V,), and whether they are refused."""
        best = self._chosen(row, top_k or self.top_k)
        refused = self.is_refused(row, p_value)
        if refused and not best:
            best = [int(row.argmax())]
        names = self.model.config.id2label
        more = {} if p_value is None else {"p_value": p_value}
        labels = [{"label": names[i], "score": float(row[i])} | more for i in best]
        if self.minimums is not None:
            for each, i in zip(labels, best, strict=True):
                each["in_set"] = float(row[i]) >= self.minimums[i]
        return labels, refused

    def candidates(self, row: Tensor) -> list[str] | None:
        """Classes of the conformal set of probabilities (V,), best first; None without minimums."""
        if self.minimums is None:
            return None
        order = row.argsort(descending=True)
        inside = row.double() >= torch.tensor(self.minimums, dtype=torch.float64)
        return [self.model.config.id2label[i] for i in order[inside[order]].tolist()]

    def is_refused(self, row: Tensor, p_value: float | None) -> bool:
        """Whether probabilities (V,) are too low for an answer, or the image is of no class."""
        unsure = bool(self.threshold) and float(row.max()) < self.threshold
        return unsure or (self.refuses and p_value is not None and p_value < LEVEL)

    def _chosen(self, row: Any, top_k: int | None) -> list[int]:
        """Indices of the returned values of (V,)."""
        if self.kind == "regression":
            return list(range(len(row)))
        count = top_k or (
            int((row >= self.label_threshold).sum())
            if self.kind == "multi_label_classification"
            else 5
        )
        best: list[int] = row.argsort(descending=True)[:count].tolist()
        return best

    def pixel_values(self, image: Any) -> Tensor:
        """What the network sees of one image: (1, 3, H, W)."""
        values: Tensor = self.image_processor(image, return_tensors="pt")["pixel_values"]
        return values

    def probabilities(self, images: list[Any]) -> Tensor:
        """Probability of every class, or the regression targets: a (B, V) tensor on the CPU.

        Images of different sizes go one by one.
        """
        return self.forward([self.pixel_values(image) for image in images])

    def forward(self, parts: list[Tensor]) -> Tensor:
        """As `probabilities`, of images that `pixel_values` prepared."""
        return self.compared(parts)[0]

    def compared(self, parts: list[Tensor]) -> tuple[Tensor, list[float | None]]:
        """As `forward`, and the p-value of the known classes of each image.

        A p-value is None where training kept nothing to compare with, and of an optimized model.
        """
        same = len({part.shape for part in parts}) == 1
        reference = self.reference
        layer = None if reference is None else head_of(self.model, self.model.config.num_labels)
        with torch.inference_mode(), inputs_of(layer) as seen:
            batches = (
                batch.to(self.model.device, self.model.dtype)
                for batch in ([torch.cat(parts)] if same else parts)
            )
            logits = torch.cat(
                [self.model(pixel_values=batch).logits.float().cpu() for batch in batches]
            )  # (B, V)
        p_values: list[float | None] = [None] * len(logits)
        if reference is not None and seen:
            p_values = list(reference.p_values(torch.cat(seen).float().cpu()).tolist())
        if self.kind == "regression":
            return logits, p_values
        if self.kind == "multi_label_classification":
            return logits.sigmoid(), p_values
        return (logits / self.temperature).softmax(dim=1), p_values
