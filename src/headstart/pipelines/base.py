"""Models as plain functions: pictures or texts in, words out.

`pipeline(task, model)` gives an object that is called with one input or many. A task adds its class
with one line in `PIPELINES`.
"""

import difflib
import importlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from headstart.checkpoint.documents import read_object, value_of
from headstart.errors import ConfigError, InputError

PIPELINES: dict[str, str] = {
    "image-classification": "headstart.pipelines.base:ImageClassificationPipeline",
    "semantic-segmentation": (
        "headstart.pipelines.semantic_segmentation:SemanticSegmentationPipeline"
    ),
    "masked-image-modeling": (
        "headstart.pipelines.masked_image_modeling:MaskedImageModelingPipeline"
    ),
    "text-classification": "headstart.pipelines.texts:TextClassificationPipeline",
    "fill-mask": "headstart.pipelines.texts:FillMaskPipeline",
    "token-classification": "headstart.pipelines.texts:TokenClassificationPipeline",
    "question-answering": "headstart.pipelines.texts:QuestionAnsweringPipeline",
}
# Other names of the same.
ALIASES = {
    "masked-language-modeling": "fill-mask",
    "sentiment-analysis": "text-classification",
    "ner": "token-classification",
}


UNKNOWN = "I don't know"  # what a pipeline answers that was told to refuse when it is not sure


def pipeline(
    task: str, model: Any = None, *, image_processor: Any = None, device: Any = None, **kwargs: Any
) -> Any:
    """A function for a task.

    Args:
        task: A name in `PIPELINES`, such as "image-classification" or "fill-mask".
        model: A folder, a Hub id, an authors' name, or a model object.
        image_processor: Processor for a model object; default the one beside the model. Pipelines
            of texts take `tokenizer` instead.
        device: "cpu", "cuda", …; default where the model is, or the CPU.
        **kwargs: Further arguments of the task's pipeline.

    Raises:
        ConfigError: No such task, or no model.

    Example:
        >>> classify = pipeline("image-classification", "runs/flowers")  # doctest: +SKIP
        >>> classify("photo.jpg", top_k=1)  # doctest: +SKIP
        [{'label': 'tiger lily', 'score': 0.98}]
    """
    task = ALIASES.get(task, task)
    if task not in PIPELINES:
        near = difflib.get_close_matches(task, PIPELINES, n=3) or list(PIPELINES)
        raise ConfigError(f"no pipeline for {task!r}; did you mean {' or '.join(near)}?")
    if model is None:
        raise ConfigError(
            f"which model? pipeline({task!r}, model=...) takes a folder, a Hub id, an authors' name"
            " or a model object"
        )
    module, _, name = PIPELINES[task].partition(":")
    return getattr(importlib.import_module(module), name)(
        model, image_processor=image_processor, device=device, **kwargs
    )


RESULTS = "results.json"


def read_results(folder: str | Path) -> dict[str, Any]:
    """What a finished run wrote about itself, checked.

    Args:
        folder: A result folder.

    Returns:
        The values of its results.json: "task", "model", "headline", "finished", "evaluations"
        (split → examples, metrics, interval), "draws", and others that nothing depends on.

    Raises:
        FileFormatError: The file is missing or damaged; the message names file and key.
    """
    path = Path(folder) / RESULTS
    values = read_object(path, nan=True)
    for key in ("task", "model", "headline", "finished"):
        value_of(values, key, str, path)
    for split, each in value_of(values, "evaluations", dict[str, dict[str, Any]], path).items():
        place = f"{path}: evaluations: {split:.40}"
        value_of(each, "examples", int, place)
        metrics = value_of(each, "metrics", dict[str, float], place)
        value_of(metrics, values["headline"], float, place)
        value_of(each, "confidence_interval_95", tuple[float, float] | None, place)
    draws = values.get("draws")
    if draws is not None:
        value_of(draws, "seeds", list[int], f"{path}: draws")
        value_of(draws, "split", str, f"{path}: draws")
        place = f"{path}: draws: metrics"
        for each in value_of(draws, "metrics", dict[str, dict[str, Any]], place).values():
            value_of(each, "values", list[float], place)
    return values


def task_of(model: str | Path) -> str:
    """The task of a checkpoint.

    What a result folder says, else what the class in its config.json is for, else image
    classification.
    """
    from headstart.loading import family_of

    if (Path(model) / RESULTS).is_file():
        task: str = read_results(model)["task"]
        return ALIASES.get(task, task)
    family, values = family_of(model)
    named = (values.get("architectures") or [""])[0]
    fits = (ALIASES.get(task, task) for task, name in family.tasks.items() if name == named)
    return next((task for task in fits if task in PIPELINES), "image-classification")


def load_both(
    model: Any, network: str, processor: Any, device: Any, tokenizer: bool = False, **values: Any
) -> tuple[Any, Any]:
    """A pipeline's network, in evaluation, and what makes its inputs.

    Args:
        model: A folder, a Hub id, an authors' name, or a model object.
        network: Name of the automatic class that loads the network.
        processor: Its image processor or tokenizer; None is the one beside the model.
        device: Where to compute; None is where the model is.
        tokenizer: Whether inputs are texts.
        **values: Values of the configuration to load the network with.

    Raises:
        ConfigError: A model object that no checkpoint lies beside, without its processor.
    """
    from headstart import auto

    name = (
        model
        if isinstance(model, str | Path)
        else getattr(getattr(model, "config", None), "name_or_path", "")
    )
    if processor is None:
        if not name:
            raise ConfigError(
                "this model was not loaded from a checkpoint: pass"
                f" {'tokenizer' if tokenizer else 'image_processor'}= too"
            )
        processor = (auto.AutoTokenizer if tokenizer else auto.AutoImageProcessor).from_pretrained(
            name
        )
    if isinstance(model, str | Path):
        model = getattr(auto, network).from_pretrained(model, **values)
    return model.eval() if device is None else model.to(device).eval(), processor


class ImageClassificationPipeline:
    """Names what is in pictures, with probabilities; or gives the numbers that a model of numbers
    says.

    Args:
        model: A folder, a Hub id, an authors' name, or a model object.
        image_processor: Processor for a model object; default the one beside the model.
        device: Where to compute.
        top_k: Labels to give of each picture; None gives five, or with several labels a picture all
            that are probable.
        batch_size: Pictures that go through the network together.
        label_threshold: Probability from which on a label is given by a model of several labels,
            where `top_k` says nothing.
        refuse: Whether to say "I don't know" below the confidence that training found for its error
            rate (`headstart train --max-error`); a number is another rate, such as 0.01.
            Probabilities are then those after temperature scaling.
    """

    task = "image-classification"

    def __init__(
        self, model: Any, *, image_processor: Any = None, device: Any = None, top_k: int | None = None, batch_size: int = 8,
        label_threshold: float = 0.5, refuse: bool | float = False,
    ) -> None:  # fmt: skip
        self.temperature, self.threshold = 1.0, 0.0
        if refuse is not False:
            from headstart.metrics.calibration import Confidence

            found = Confidence.read(
                model
                if isinstance(model, str | Path)
                else getattr(model.config, "name_or_path", "")
            )
            self.temperature, self.threshold = (
                found.temperature,
                found.choice(None if refuse is True else refuse).threshold,
            )
        self.model, self.image_processor = load_both(
            model, "AutoModelForImageClassification", image_processor, device
        )
        self.top_k, self.batch_size, self.label_threshold = top_k, batch_size, label_threshold
        self.kind = self.model.config.problem_type

    def __call__(self, images: Any, top_k: int | None = None, batch_size: int | None = None) -> Any:
        """Labels and probabilities, best first; of a model of numbers their names and values.

        Args:
            images: A path, bytes, PIL image or array (H, W, 3), or a list (or iterator) of them.
            top_k: Labels to give of each picture; at most all of the model's.
            batch_size: Pictures that go through the network together.

        Returns:
            A list of `{"label": str, "score": float}` for one picture, and a list of such lists for
            many.

        Raises:
            InputError: A picture that cannot be read; the message names it.
        """
        if top_k is not None and top_k < 1:
            raise InputError(f"top_k={top_k}; at least one label has to be given")
        if is_one_image(images):
            return next(self.stream([images], top_k, 1))
        return list(self.stream(images, top_k, batch_size))

    def stream(
        self, images: Iterable[Any], top_k: int | None = None, batch_size: int | None = None
    ) -> Iterator[list[dict[str, Any]]]:
        """As `__call__` for many pictures, one result at a time and without holding all pictures in
        memory.
        """
        for batch in batched(images, self.batch_size if batch_size is None else batch_size):
            for row in self.probabilities(batch):
                best = self._chosen(row, top_k or self.top_k)
                if self.threshold and row[best[0]] < self.threshold:
                    yield [{"label": UNKNOWN, "score": float(row[best[0]])}]
                    continue
                yield [
                    {"label": self.model.config.id2label[i], "score": float(row[i])} for i in best
                ]

    def _chosen(self, row: Any, top_k: int | None) -> list[int]:
        """Which of the values (V,) are given."""
        if self.kind == "regression":
            return list(range(len(row)))
        count = top_k or (
            int((row >= self.label_threshold).sum())
            if self.kind == "multi_label_classification"
            else 5
        )
        best: list[int] = row.argsort(descending=True)[:count].tolist()
        return best

    def probabilities(self, images: list[Any]) -> Any:
        """Probability of every class, or the numbers: a (B, V) tensor on the CPU.

        Pictures of different sizes go one by one.
        """
        import torch

        parts = [
            self.image_processor(image, return_tensors="pt")["pixel_values"] for image in images
        ]  # each (1, 3, H, W)
        same = len({part.shape for part in parts}) == 1
        with torch.inference_mode():
            batches = (
                batch.to(self.model.device, self.model.dtype)
                for batch in ([torch.cat(parts)] if same else parts)
            )
            logits = torch.cat(
                [self.model(pixel_values=batch).logits.float().cpu() for batch in batches]
            )  # (B, V)
        if self.kind == "regression":
            return logits
        return (
            logits.sigmoid()
            if self.kind == "multi_label_classification"
            else (logits / self.temperature).softmax(dim=1)
        )


def is_one_image(value: Any) -> bool:
    """Whether an argument is one picture and not many.

    Paths, bytes, PIL images, and arrays with at most three axes.
    """
    if isinstance(value, str | bytes | Path) or hasattr(value, "convert") or hasattr(value, "read"):
        return True
    return hasattr(value, "shape") and len(value.shape) <= 3


def batched(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Lists of at most `size` items."""
    if size < 1:
        raise InputError(f"batch_size={size}; it must be at least 1")
    batch: list[Any] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
