"""What a served model answers: plain values for JSON, from pixels or texts."""

import base64
import binascii
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from headstart.errors import ConfigError, HeadstartError, InputError
from headstart.images.decode import DAMAGE, load_image, open_image
from headstart.pipelines.base import pipeline, task_of

IMAGE_TASKS = ("image-classification",)
TEXT_TASKS = ("text-classification", "token-classification", "fill-mask", "question-answering")


class Answers:
    """A model and its task.

    Args:
        model: A result folder (optimized or not), Hub id or authors' name.
        device: Where to compute; default where the model is.
        max_pixels: Pixels of an image, at most.

    Raises:
        ConfigError: A task that is not served.
    """

    def __init__(self, model: str, device: str | None = None, max_pixels: int = 50_000_000) -> None:
        self.name, self.task, self.max_pixels = model, task_of(model), max_pixels
        if self.task not in (*IMAGE_TASKS, *TEXT_TASKS):
            known = ", ".join((*IMAGE_TASKS, *TEXT_TASKS))
            raise ConfigError(f"{model} is for {self.task}, which is not served; served: {known}")
        self.is_image = self.task in IMAGE_TASKS
        folder = Path(model)
        self.folder = folder if folder.is_dir() else None
        options: dict[str, Any] = {"device": device}
        if self.is_image and (folder / "confidence.json").is_file():
            options["refuse"] = True
        self.pipe = pipeline(self.task, model, **options)

    @property
    def labels(self) -> list[str]:
        """Names of the classes."""
        names = self.pipe.model.config.id2label
        return [str(names[i]) for i in sorted(names)]

    def describe(self) -> dict[str, Any]:
        """What `/model` says."""
        network = self.pipe.model
        engine = getattr(getattr(network, "report", None), "chosen", None)
        card = None if self.folder is None else self.folder / "README.md"
        return {
            "name": Path(self.name).name if self.folder else self.name,
            "task": self.task,
            "labels": self.labels,
            "network": type(getattr(network, "original", network)).__name__
            if engine is None
            else network.model_class.__name__,
            "engine": "torch" if engine is None else engine.engine,
            "precision": "float32" if engine is None else engine.precision,
            "refuses": bool(getattr(self.pipe, "threshold", 0.0)),
            "report": self.report is not None,
            "card": card.read_text("utf-8", "replace") if card and card.is_file() else None,
        }

    @property
    def report(self) -> Path | None:
        """The report of the training, where the folder has one."""
        path = None if self.folder is None else self.folder / "report.html"
        return path if path is not None and path.is_file() else None

    def decode(self, data: bytes) -> np.ndarray[Any, Any]:
        """The pixels of an image file, (H, W, 3) uint8.

        Raises:
            InputError: Not an image, or one of too many pixels.
        """
        try:
            with open_image(data) as image:
                count = image.width * image.height
        except InputError as error:
            raise InputError(f"the image {error}") from error
        except DAMAGE as error:
            raise InputError("this is not an image that can be read") from error
        if count > self.max_pixels:
            raise InputError(
                f"the image has {count:,} pixels; at most {self.max_pixels:,} are read"
            )
        return load_image(data)

    def item(self, value: Any) -> Any:
        """An input out of JSON: a text, `{"text": …}`, `{"image": base64}`, or a question with its
        context. Texts are never taken for paths or addresses.

        Raises:
            InputError: Something else.
        """
        if self.is_image:
            encoded = value.get("image") if isinstance(value, Mapping) else value
            if not isinstance(encoded, str):
                raise InputError('an image is {"image": "base64 of the file"}')
            try:
                data = base64.b64decode(encoded.partition(",")[2] or encoded, validate=True)
            except (binascii.Error, ValueError) as error:
                raise InputError("image is not base64") from error
            return self.decode(data)
        if self.task == "question-answering":
            if not isinstance(value, Mapping) or not all(
                isinstance(value.get(key), str) for key in ("question", "context")
            ):
                raise InputError('an input is {"question": "…", "context": "…"}')
            return {key: value[key] for key in ("question", "context")}
        text = value.get("text") if isinstance(value, Mapping) else value
        if not isinstance(text, str) or not text.strip():
            raise InputError('an input is a text, or {"text": "…"}, and not empty')
        return text

    def run(self, items: list[Any]) -> list[Any]:
        """Answers to decoded inputs; an error in place of an answer where one alone is wrong."""
        try:
            return self._answers(items)
        except HeadstartError as error:
            if len(items) == 1:
                return [error]
            return [self.run([item])[0] for item in items]

    def _answers(self, items: list[Any]) -> list[Any]:
        if not self.is_image:
            more = {"top_k": None} if self.task == "text-classification" else {}
            found = self.pipe(items, **more)
            return [{"predictions": plain(each)} for each in found]
        answers = []
        prepared = [self.pipe.pixel_values(item) for item in items]
        for row, p_value in zip(*self.pipe.compared(prepared), strict=True):
            numbers = self.pipe.kind == "regression"
            order = range(len(row)) if numbers else row.argsort(descending=True).tolist()
            names = self.pipe.model.config.id2label
            best = [{"label": str(names[i]), "score": float(row[i])} for i in order]
            refused = not numbers and self.pipe.is_refused(row, p_value)
            known = {} if p_value is None else {"p_value": p_value}
            answers.append({"predictions": best, "refused": refused} | known)
        return answers

    def explain(self, item: Any) -> dict[str, Any]:
        """The class of an image and a PNG of where the network looked, as a `data:` address.

        Raises:
            InputError: Not a model of images.
        """
        if not self.is_image:
            raise InputError("heat maps are for images")
        from headstart.report.explain import explain

        found = explain(
            self.pipe.model, self.pipe.image_processor, item, None, self.pipe.temperature
        )
        with io.BytesIO() as file:
            Image.fromarray(found.overlay()).save(file, "PNG")
            encoded = base64.b64encode(file.getvalue()).decode()
        return {
            "label": found.label,
            "score": found.score,
            "image": f"data:image/png;base64,{encoded}",
        }


def plain(value: Any) -> Any:
    """Plain values of what a pipeline returns."""
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return value.item() if hasattr(value, "item") else value
