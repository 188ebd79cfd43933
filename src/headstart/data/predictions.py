"""Predictions for many images: reading and preprocessing overlap with the network, and every input
gives one row.
"""

import math
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from headstart.data.cache import parallel
from headstart.data.examples import numbered
from headstart.data.inputs import ImageInput
from headstart.data.passes import IMAGES, VALUES, forward_passes
from headstart.data.results import Kind
from headstart.data.sources.raw import take
from headstart.errors import ConfigError, InputError
from headstart.pipelines.confidence import UNKNOWN

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T")
Named = TypeVar("Named", bound="DataclassInstance")  # with a `name`
REMEMBERED = 128 << 20  # bytes of results of repeated files that are in memory together
LABEL = 512  # bytes of one label of a prediction, about


@dataclass(frozen=True)
class Prediction:
    """What a model gives for one image.

    Args:
        name: How the user knows the image.
        labels: Labels and scores, best first; of a painter classes and fractions of the image.
        refused: Whether the confidence is too low for an answer.
        files: Images that were written, by what they are.
        p_value: How often an image of the known classes is at least as far from the training
            examples; None where it is not known.
        candidates: Classes of the conformal set, best first; None where it is not known.
        error: Why there is no prediction.
    """

    name: str
    labels: list[dict[str, Any]] = field(default_factory=list)
    refused: bool = False
    files: dict[str, Path] = field(default_factory=dict)
    p_value: float | None = None
    candidates: list[str] | None = None
    error: str | None = None

    def shown(self) -> list[dict[str, Any]]:
        """Labels as they are printed: of a refused answer UNKNOWN with the highest score."""
        return [self.labels[0] | {"label": UNKNOWN}] if self.refused else self.labels


def attempt(
    function: Callable[[ImageInput], T], inputs: Sequence[ImageInput], workers: int | None = None
) -> Iterator[T | InputError]:
    """Results of a function of images, read ahead by threads; an unreadable image is its error."""

    def one(each: ImageInput) -> T | InputError:
        try:
            return function(each)
        except InputError as error:
            return error

    return parallel(one, inputs, workers)


def once_a_file(
    inputs: Sequence[ImageInput], results: Callable[[Sequence[int]], Iterator[Named]], size: int
) -> Iterator[Named]:
    """The result of each input, in order, under its name; a file that is repeated is computed once.

    The last results that occur again are remembered, in bounded memory: where too many others were
    needed since, a file is computed anew.

    Args:
        inputs: The images.
        results: Gives the results of some of the inputs, by their numbers.
        size: Bytes of one result.
    """
    _, which = numbered(each.key for each in inputs)
    repeated = np.bincount(which) > 1
    most = max(1, REMEMBERED // size)
    rows = array("q")  # that are computed
    turn = lru_cache(most)(lambda file: len(rows))  # in which the result is computed
    for i, file in enumerate(which.tolist()):
        if not repeated[file] or turn(file) == len(rows):
            rows.append(i)
    found = results(rows)
    remembered = lru_cache(most)(lambda file: next(found))  # the same ones as those of `turn`
    for each, file in zip(inputs, which.tolist(), strict=True):
        result = remembered(file) if repeated[file] else next(found)
        yield replace(result, name=each.name)


def in_batches(
    inputs: Sequence[ImageInput], ready: Iterable[Any], batch_size: int | None
) -> Iterator[list[tuple[ImageInput, Any]]]:
    """Images with what was prepared of each, in batches for one forward pass.

    Args:
        inputs: The images.
        ready: An array of each, with a shape, or why there is none.
        batch_size: Images in a batch; None takes 8 of 224 x 224 pixels, and more of smaller ones,
            at most 64: a forward pass of few small images is mostly overhead.

    Raises:
        InputError: `batch_size` is not positive.
    """
    if batch_size is not None and batch_size < 1:
        raise InputError(f"batch_size={batch_size}; it must be at least 1")
    batch: list[tuple[ImageInput, Any]] = []
    values = 0
    for pair in zip(inputs, ready, strict=True):
        batch.append(pair)
        values += 0 if isinstance(pair[1], InputError) else math.prod(pair[1].shape)
        if len(batch) == (batch_size or IMAGES) or (batch_size is None and values >= VALUES):
            yield batch
            batch, values = [], 0
    if batch:
        yield batch


def computed(
    function: Callable[[list[Any]], Iterable[Any]], batch: Sequence[tuple[ImageInput, Any]]
) -> list[tuple[ImageInput, Any]]:
    """The images of a batch with what a forward pass gives for each, or why there is nothing.

    Args:
        function: The forward pass: one result for each array.
        batch: Images with the array of each, or why there is none.
    """
    parts = [values for _, values in batch if not isinstance(values, InputError)]
    results = iter(function(parts) if parts else ())
    return [
        (each, values if isinstance(values, InputError) else next(results))
        for each, values in batch
    ]


def classify(
    pipe: Any,
    inputs: Sequence[ImageInput],
    *,
    top_k: int | None = None,
    batch_size: int | None = None,
    workers: int | None = None,
) -> Iterator[Prediction]:
    """The prediction for every image, in order.

    Args:
        pipe: A pipeline of image classification.
        inputs: The images.
        top_k: Labels of each image; None as the pipeline has it.
        batch_size: Images in one forward pass; see `in_batches`.
        workers: Threads that read and preprocess; None is one for each processor, at most 8.
    """

    def results(rows: Sequence[int]) -> Iterator[Prediction]:
        return _classify(pipe, take(inputs, rows), top_k, batch_size, workers)

    return once_a_file(inputs, results, LABEL * (2 + (top_k or 1)))


def _classify(
    pipe: Any,
    inputs: Sequence[ImageInput],
    top_k: int | None,
    batch_size: int | None,
    workers: int | None,
) -> Iterator[Prediction]:
    """As `classify`, of inputs that are each a file of their own."""
    ready = attempt(lambda each: pipe.pixel_values(each.pixels()), inputs, workers)
    for batch in forward_passes(
        lambda batch: computed(lambda parts: zip(*pipe.compared(parts), strict=True), batch),
        in_batches(inputs, ready, batch_size),
        pipe.model,
    ):
        for each, found in batch:
            if isinstance(found, InputError):
                yield Prediction(each.name, error=str(found))
            else:
                row, p_value = found
                labels, refused = pipe.answer(row, top_k, p_value)
                known = {"p_value": p_value, "candidates": pipe.candidates(row)}
                yield Prediction(each.name, labels, refused, **known)


def paint(
    painter: Any, inputs: Sequence[ImageInput], stems: Sequence[Path], workers: int | None = None
) -> Iterator[Prediction]:
    """The prediction for every image of a model that writes images, in order.

    Args:
        painter: A pipeline of segmentation or masked images.
        inputs: The images.
        stems: Paths of the written images, without their endings; see `unique_stems`.
        workers: Threads that read.
    """

    def results(rows: Sequence[int]) -> Iterator[Prediction]:
        return _paint(painter, take(inputs, rows), take(stems, rows), workers)

    return once_a_file(inputs, results, LABEL * len(painter.model.config.id2label))


def _paint(
    painter: Any, inputs: Sequence[ImageInput], stems: Sequence[Path], workers: int | None
) -> Iterator[Prediction]:
    """As `paint`, of inputs that are each a file of their own."""
    ready = attempt(ImageInput.pixels, inputs, workers)
    for each, pixels, stem in zip(inputs, ready, stems, strict=True):
        if isinstance(pixels, InputError):
            yield Prediction(each.name, error=str(pixels))
            continue
        found = painter.write(pixels, stem)
        files = {
            key.removesuffix("_file"): Path(found[key]) for key in found if key.endswith("_file")
        }
        labels = [{"label": one["label"], "score": one["fraction"]} for one in found["classes"]]
        yield Prediction(each.name, labels, files=files)


def unique_stems(inputs: Sequence[ImageInput], folder: Path) -> list[Path]:
    """A path in a folder for the images written for each input, without its ending.

    Inputs that are the same file have the same one.
    """
    taken: set[str] = set()
    last: dict[str, int] = {}
    files, which = numbered(each.key for each in inputs)
    found = []
    for i in files.tolist():
        first = name = PurePath(inputs[i].name).stem
        while name in taken:
            last[first] = last.get(first, 1) + 1
            name = f"{first}_{last[first]}"
        taken.add(name)
        found.append(folder / name)
    return [found[file] for file in which.tolist()]


# Rows ---------------------------------------------------------------------------------------------


def columns_of(task: str, kind: str | None, targets: Sequence[str]) -> dict[str, Kind]:
    """Columns of the table of predictions for images.

    Args:
        task: Task of the model.
        kind: `problem_type` of a classifier.
        targets: Names of the regression targets.

    Raises:
        ConfigError: A target is called as another column.
    """
    if task == "semantic-segmentation":
        return {
            "path": "text",
            "mask": "text",
            "overlay": "text",
            "classes": "scores",
            "error": "text",
        }
    if task == "masked-image-modeling":
        return {"path": "text", "reconstruction": "text", "classes": "scores", "error": "text"}
    if kind == "regression":
        for name in ("path", "error"):
            if name in targets:
                raise ConfigError(f"a target of this model is called {name!r}, as a column is")
        return {"path": "text", **dict.fromkeys(targets, "number"), "error": "text"}
    if kind == "multi_label_classification":
        return {"path": "text", "labels": "scores", "refused": "flag", "error": "text"}
    return {
        "path": "text",
        "label": "text",
        "probability": "number",
        "top_k": "scores",
        "candidates": "json",
        "p_value": "number",
        "refused": "flag",
        "error": "text",
    }


def row_of(
    found: Prediction, columns: Mapping[str, Kind], folder: Path, kind: str | None
) -> dict[str, Any]:
    """A prediction as a row of its table; what does not apply is None.

    Args:
        found: The prediction.
        columns: From `columns_of`.
        folder: Where the table is: paths of written images are relative to it.
        kind: `problem_type` of a classifier.
    """
    row: dict[str, Any] = dict.fromkeys(columns) | {"path": found.name, "error": found.error}
    if found.error is not None:
        return row
    if kind == "regression":
        return row | {each["label"]: each["score"] for each in found.labels}
    best = found.labels[0] if found.labels else {"label": None, "score": None}
    answer = {
        "label": None if found.refused else best["label"],
        "probability": best["score"],
        "top_k": [{key: each[key] for key in ("label", "score")} for each in found.labels],
        "candidates": found.candidates,
        "labels": [] if found.refused else found.labels,
        "classes": found.labels,
        "p_value": found.p_value,
        "refused": found.refused,
    }
    answer |= {key: file.relative_to(folder).as_posix() for key, file in found.files.items()}
    return row | {key: value for key, value in answer.items() if key in columns}
