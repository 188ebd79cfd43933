"""Predictions and vectors of batches of rows: callable classes for `map_batches` of Ray Data, `map`
of `datasets`, and whatever else hands out columns.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from headstart.data import predictions, text_files
from headstart.data.blocks import StoredImage, name_of
from headstart.data.embeddings import IMAGE_COLUMNS, TEXT_COLUMNS
from headstart.data.inputs import ImageInput
from headstart.data.results import Kind, arrow_table
from headstart.data.storage import is_uri
from headstart.errors import ConfigError, InputError
from headstart.features.embed import Embedder, vectors_of
from headstart.pipelines.base import batched, fingerprint, pipeline, task_of

TOGETHER = 1024  # inputs that are in memory together
NAMES = ("path", "name", "id")  # usual columns that name a row
CELLS = ("image", "bytes", "item", "path", "text")  # usual columns of images and texts


class Batches(ABC):
    """What turns inputs into rows of results.

    Attributes:
        columns: Kind of each column of the results.
        facts: What is true of all rows; see `headstart.data.results.ResultTable`.
        task: Task of a text model, "" of images.
    """

    columns: dict[str, Kind]
    facts: dict[str, str]
    task: str = ""
    column: str | None = None
    keep: Sequence[str] = ()

    def rows(self, inputs: Iterator[Any]) -> Iterator[dict[str, Any]]:
        """The row of each input, in order."""
        for part in batched(inputs, TOGETHER):
            yield from self._part(part)

    @abstractmethod
    def _part(self, inputs: list[Any]) -> Iterator[dict[str, Any]]:
        """The row of each of a few inputs, in order."""

    def __call__(self, batch: Mapping[str, Sequence[Any]]) -> Any:
        """The results of a batch.

        Args:
            batch: Values by column, as `map_batches` and `map(batched=True)` give them. The column
                of images holds encoded bytes, paths or URIs, arrays (H, W, 3) of uint8, or
                `{"bytes", "path"}`; that of texts holds texts.

        Returns:
            A `pyarrow.Table` with a row for each of the batch, in order: the columns of `headstart
            predict --out` or `embed --out`, and those of `keep`.

        Raises:
            InputError: The batch has no such column, or a cell is neither image nor text.
        """
        column = self.column or next((name for name in CELLS if name in batch), None)
        missing = [each for each in (column, *self.keep) if each not in batch]
        if missing or column is None:
            raise InputError(
                f"the batch has columns {', '.join(batch)}, not {missing[0] or CELLS[0]!r}; name"
                " the column of images or texts with column="
            )
        names = next((batch[name] for name in NAMES if name in batch), None)
        cells = batch[column]
        known = [f"row {i + 1}" if names is None else str(names[i]) for i in range(len(cells))]
        inputs = (self._input(name, cell) for name, cell in zip(known, cells, strict=True))
        table = arrow_table(list(self.rows(inputs)), self.columns, self.facts)
        for name in self.keep:
            table = table.append_column(name, [list(batch[name])])
        return table

    def _input(self, name: str, cell: Any) -> Any:
        """An input from a cell of a batch."""
        if self.task:
            return name, cell if isinstance(cell, dict) else str(cell)
        value = (cell.get("bytes") or cell.get("path")) if isinstance(cell, dict) else cell
        if isinstance(value, bytes):
            return ImageInput(name, value)
        if isinstance(value, str | Path):
            return StoredImage(str(value)) if is_uri(value) else ImageInput(name, Path(value))
        array = np.asarray(value)
        if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
            raise InputError(
                f"{name}: expected bytes, a path or an array (H, W, 3) of uint8; got"
                f" {array.dtype} {array.shape}"
            )
        return ImageInput(name, array)


class BatchPredictor(Batches):
    """Predictions for batches of images or texts, with the columns of `headstart predict --out`.

    Made for `map_batches` of Ray Data, whose actors each hold one model, and for `map` of
    `datasets`; nothing of Ray is imported. An image that cannot be read has a row with its `error`.

    Args:
        model: A result folder, optimized (`headstart optimize`) or not, a Hub id or an authors'
            name.
        column: Column of images or texts; None is the first of image, bytes, item, path, text.
        keep: Columns of the batch to pass on.
        top: Labels of each row.
        batch_size: Images or texts in one forward pass; None takes 8 texts, 8 images of 224 x 224
            pixels, or up to 64 smaller ones.
        threshold: Minimum probability of a label of a multi-label model.
        refuse: Whether to refuse answers of low confidence, or the target error rate.
        long: What becomes of texts above the maximum length: "refuse", "cut" or "extend".
        hash_error: Sampled attention with enough hashes for this relative error.
        settings: Values of a text model's configuration.
        device: Where to compute; None is where the model is.
        workers: Threads that read and preprocess images.

    Attributes:
        columns: Kind of each column of the results.

    Raises:
        ConfigError: The model writes images (segmentation, masked images), or an option that it
            does not have.

    Example:
        >>> import numpy
        >>> from headstart import BatchPredictor
        >>> predict = BatchPredictor("bit-mini", top=1)
        >>> table = predict({"image": numpy.zeros((2, 64, 64, 3), dtype="uint8")})
        >>> table.num_rows, table.column_names[:3]
        (2, ['path', 'label', 'probability'])
    """

    def __init__(
        self,
        model: str | Path,
        *,
        column: str | None = None,
        keep: Sequence[str] = (),
        top: int | None = None,
        batch_size: int | None = None,
        threshold: float = 0.5,
        refuse: bool | float = False,
        long: str = "refuse",
        hash_error: float | None = None,
        settings: Mapping[str, Any] | None = None,
        device: Any = None,
        workers: int | None = None,
    ) -> None:
        self.column, self.keep, self.top = column, keep, top
        self.batch_size, self.workers = batch_size, workers
        task = task_of(model)
        self.pipe: Any
        if task in text_files.TASKS:
            self.task = task
            self.pipe = text_files.text_pipeline(
                task,
                str(model),
                batch_size=batch_size,
                long=long,
                hash_error=hash_error,
                settings=settings,
                device=device,
                refuse=refuse,
            )
            kind = self.pipe.model.config.problem_type
            self.columns = text_files.text_columns_of(task, kind)
            self.facts = {"model": str(model), "key": fingerprint(self.pipe)}
            return
        if task != "image-classification":
            raise ConfigError(
                f"{model} is a model of {task}, which writes images; batches are for models that"
                " classify images, and for models of texts"
            )
        self.pipe = pipeline(task, model, device=device, refuse=refuse, label_threshold=threshold)
        names = list(self.pipe.model.config.id2label.values())
        self.columns = predictions.columns_of(task, self.pipe.kind, names)
        self.facts = {"model": str(model), "key": fingerprint(self.pipe)}

    def _part(self, inputs: list[Any]) -> Iterator[dict[str, Any]]:
        best = self.top or 3
        if self.task:
            for name, found in text_files.stream_texts(self.pipe, self.task, inputs, best):
                yield text_files.text_row(self.task, name, found, self.columns)
            return
        kind = self.pipe.kind
        limit = best if kind in (None, "single_label_classification") else self.top
        for each in predictions.classify(
            self.pipe, inputs, top_k=limit, batch_size=self.batch_size, workers=self.workers
        ):
            yield predictions.row_of(each, self.columns, Path(), kind)


class BatchEmbedder(Batches):
    """Vectors of batches of images or texts, with the columns of `headstart embed --out`.

    Made for `map_batches` of Ray Data, whose actors each hold one model, and for `map` of
    `datasets`; nothing of Ray is imported. An image that cannot be read has a row with its `error`.

    Args:
        model: A result folder, a Hub id or an authors' name.
        column: Column of images or texts; None is the first of image, bytes, item, path, text.
        keep: Columns of the batch to pass on.
        batch_size: Images or texts in one forward pass; None takes 8 texts, 8 images of 224 x 224
            pixels, or up to 64 smaller ones.
        long: What becomes of texts above the maximum length: "refuse", "cut" or "extend".
        device: Where to compute; None is the CPU.
        workers: Threads that read and preprocess images.

    Attributes:
        columns: Kind of each column of the results.
        facts: Name and key of the model and the width of its vectors.

    Raises:
        ConfigError: The checkpoint lacks weights.

    Example:
        >>> import numpy
        >>> from headstart import BatchEmbedder
        >>> embed = BatchEmbedder("bit-mini")
        >>> table = embed({"image": numpy.zeros((2, 64, 64, 3), dtype="uint8")})
        >>> table.num_rows, table.column_names
        (2, ['path', 'features', 'error'])
    """

    def __init__(
        self,
        model: str | Path,
        *,
        column: str | None = None,
        keep: Sequence[str] = (),
        batch_size: int | None = None,
        long: str = "refuse",
        device: Any = None,
        workers: int | None = None,
    ) -> None:
        self.column, self.keep = column, keep
        self.batch_size, self.workers = batch_size, workers
        self.embedder = Embedder(model, device, long)
        self.facts = self.embedder.facts
        self.task = "text-classification" if self.embedder.reads_text else ""
        self.columns = TEXT_COLUMNS if self.embedder.reads_text else IMAGE_COLUMNS

    def _part(self, inputs: list[Any]) -> Iterator[dict[str, Any]]:
        for each in inputs:
            if self.task and not isinstance(each[1], str):
                raise InputError(f"{name_of(each)} is a pair of texts; expected one text")
        for found in vectors_of(self.embedder, inputs, self.batch_size, self.workers):
            row = {"path": found.name, "error": found.error or None, "features": found.vector}
            yield row | {"text": found.name, "content": found.content}
