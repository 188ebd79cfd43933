"""Text classification: a class, several classes, or a number for each text or pair of texts."""

from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headstart.auto import AutoModelForSequenceClassification
from headstart.errors import DataError
from headstart.train.metrics import classification_metrics, wilson
from headstart.train.report import Section
from headstart.train.report import Table as ReportTable
from headstart.train.tasks import DataOptions, Evaluation
from headstart.train.tasks.classification_report import classification_sections
from headstart.train.tasks.text import TextTask, class_index, class_names
from headstart.train.text_data import Row, TextData, hold_out, read_labelled, read_texts
from headstart.train.text_metrics import matthews, pearson, spearman

SCORE = "score"  # name of the one output of a regression
SEPARATOR = "|"  # between the classes of a text in a table of plain cells


class TextClassification(TextTask):
    """A class for each text or pair. `read` gives one of the two tasks below where labels are lists or numbers with a point."""

    name: ClassVar[str] = "text-classification"
    headline: ClassVar[str] = "accuracy"
    rows = staticmethod(read_labelled)
    auto = AutoModelForSequenceClassification

    def __init__(self, data: TextData, options: DataOptions) -> None:
        super().__init__(data, options)
        self.names = self._names()

    @classmethod
    def read(cls, path: str | Path, options: DataOptions) -> Self:
        """See `Task.read`."""
        data = read_texts(path, options, read_labelled)
        kind = kind_of([row for rows in data.splits.values() for row in rows], options)
        if kind is TextClassification:
            for row in (row for rows in data.splits.values() for row in rows):
                row.values["label"] = plain_label(row.values["label"])
        if options.classes is None:
            strata = None
            if kind is TextClassification:
                numbers = {label: i for i, label in enumerate(sorted({row.values["label"] for row in data.splits["train"]}))}
                strata = [numbers[row.values["label"]] for row in data.splits["train"]]
            hold_out(data, options, strata)
        return kind(data, options)  # type: ignore[return-value]

    def _names(self) -> list[str]:
        return class_names([row.values["label"] for row in self.data.splits["train"]], self.options)

    @property
    def labels(self) -> list[str]:
        """See `TextTask.labels`."""
        return self.names

    def what(self) -> str:
        """See `TextTask.what`."""
        pairs = "pair" in self.data.splits["train"][0].values
        counts = np.bincount([self.names.index(row.values["label"]) for row in self.data.splits["train"]], minlength=len(self.names))
        balance = f"{counts.min()} to {counts.max()}" if counts.min() < counts.max() else str(counts.min())
        return f"{'pairs of texts' if pairs else 'texts'} in {len(self.names)} classes of {balance} training examples"

    def target(self, row: Row) -> Any:  # noqa: ANN401 - a number or a list of them
        """What the loss compares with."""
        return class_index(self.names, row.values["label"], row.name)

    def encode(self, split: str) -> list[dict[str, Any]]:
        """See `TextTask.encode`."""
        rows = self.data.splits[split]
        pairs = [row.values["pair"] for row in rows] if rows and "pair" in rows[0].values else None
        texts = [row.values["text"] for row in rows]
        lengths = [len(ids) for ids in self.tokens(texts, pairs)["input_ids"]]
        ids = self.tokens(texts, pairs, truncation="longest_first", max_length=self.max_length)["input_ids"]
        return [
            {"input_ids": each, "target": self.target(row), "cut": length > len(each)}
            for each, row, length in zip(ids, rows, lengths, strict=True)
        ]

    def loss(self, model: nn.Module, inputs: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Task.loss`."""
        logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits.float()  # (B, V)
        return self.compare(logits, inputs["target"])

    def compare(self, logits: Tensor, target: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Sums of loss and measures."""
        loss = F.cross_entropy(logits, target, reduction="sum", label_smoothing=self.recipe.label_smoothing)
        return loss, {"accuracy": (logits.detach().argmax(1) == target).sum()}

    def evaluate(self, model: nn.Module, split: str, device: torch.device) -> Evaluation:
        """See `Task.evaluate`: `details` are logits (N, V) and labels."""
        logits = np.stack(self.scores(model, split, device, lambda out: out.logits))
        labels = np.array([each["target"] for each in self.encoded[split]])
        metrics, interval = self.measure(logits, labels)
        return Evaluation(split, len(labels), metrics, interval, {"logits": logits, "labels": labels})

    def measure(self, logits: Any, labels: Any) -> tuple[dict[str, float], tuple[float, float] | None]:  # noqa: ANN401 - arrays
        """The numbers of an evaluation, and the interval of the headline."""
        said = logits.argmax(1)
        metrics = classification_metrics(logits, labels)
        metrics["mcc"] = matthews(labels, said, logits.shape[1])
        if logits.shape[1] == 2:  # of the second class, as GLUE counts
            both = int(((said == 1) & (labels == 1)).sum())
            metrics["f1"] = 2 * both / max(1, int((said == 1).sum() + (labels == 1).sum()))
        return metrics, wilson(int((said == labels).sum()), len(labels))

    def report(self, evaluation: Evaluation) -> list[Section]:
        """See `Task.report`."""
        names = [row.name for row in self.data.splits[evaluation.split]]
        sections = classification_sections(evaluation, self.names, names, None)
        return [*sections, *self._mistakes(evaluation)]

    def _mistakes(self, evaluation: Evaluation) -> list[Section]:
        logits, labels = evaluation.details["logits"], evaluation.details["labels"]
        sure = torch.from_numpy(logits).softmax(1).max(1).values.numpy()
        wrong = [i for i in np.argsort(-sure, kind="stable") if logits[i].argmax() != labels[i]][:20]
        rows = self.data.splits[evaluation.split]
        said = [f"{self.names[logits[i].argmax()]} {sure[i]:.0%}" for i in wrong]
        table = [[self.names[labels[i]], answer, shortened(rows[i].values), rows[i].name] for i, answer in zip(wrong, said, strict=True)]
        text = "What the model was surest of and got wrong: hard texts, or wrong labels."
        head = ("class", "predicted", "text", "where")
        return [Section("Most confident mistakes", text, table=ReportTable(head, table))] if table else []


class MultiLabel(TextClassification):
    """Any number of classes for each text."""

    headline: ClassVar[str] = "micro_f1"

    def _names(self) -> list[str]:
        for row in (row for rows in self.data.splits.values() for row in rows):
            value = row.values["label"]
            parts = value.split(SEPARATOR) if isinstance(value, str) else value
            if not isinstance(parts, list):
                raise DataError(f"{row.name}: the label is {value!r}; other rows have lists of classes")
            row.values["label"] = sorted({str(each).strip() for each in parts if str(each).strip()})
        return class_names([label for row in self.data.splits["train"] for label in row.values["label"]], self.options)

    def what(self) -> str:
        """See `TextTask.what`."""
        mean = float(np.mean([len(row.values["label"]) for row in self.data.splits["train"]]))
        return f"texts with {mean:.1f} of {len(self.names)} classes each"

    def overrides(self) -> dict[str, Any]:
        """See `TextTask.overrides`."""
        return super().overrides() | {"problem_type": "multi_label_classification"}

    def target(self, row: Row) -> Any:  # noqa: ANN401 - see the base
        """Zeros and ones."""
        on = {class_index(self.names, label, row.name) for label in row.values["label"]}
        return [float(i in on) for i in range(len(self.names))]

    def compare(self, logits: Tensor, target: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Binary cross-entropy, the mean over the classes."""
        loss = F.binary_cross_entropy_with_logits(logits, target, reduction="none").mean(1).sum()
        return loss, {"accuracy": ((logits.detach() > 0) == (target > 0.5)).all(1).sum()}

    def measure(self, logits: Any, labels: Any) -> tuple[dict[str, float], tuple[float, float] | None]:  # noqa: ANN401 - see the base
        """F1 over all answers and over classes, and the share of texts whose classes are all right."""
        said, true = logits > 0, labels > 0.5
        both, each = (said & true).sum(0), said.sum(0) + true.sum(0)  # (V,)
        loss = F.binary_cross_entropy_with_logits(torch.tensor(logits), torch.tensor(labels, dtype=torch.float32))
        return {
            "micro_f1": float(2 * both.sum() / max(1, each.sum())),
            "macro_f1": float((2 * both / np.maximum(1, each))[true.any(0)].mean()) if true.any() else 0.0,
            "subset_accuracy": float((said == true).all(1).mean()),
            "loss": loss.item(),
        }, None

    def report(self, evaluation: Evaluation) -> list[Section]:
        """F1 of each class."""
        said, true = evaluation.details["logits"] > 0, evaluation.details["labels"] > 0.5
        rows = []
        for i, name in enumerate(self.names):
            both, given, there = int((said & true)[:, i].sum()), int(said[:, i].sum()), int(true[:, i].sum())
            shares = (both / max(1, there), both / max(1, given), 2 * both / max(1, given + there))
            rows.append([name, str(there), *(f"{share:.1%}" for share in shares)])
        table = ReportTable(("class", "examples", "recall", "precision", "F1"), rows)
        return [Section("Classes", "Each class by itself, at a probability above one half.", table=table)]


class Regression(TextClassification):
    """A number for each text or pair."""

    headline: ClassVar[str] = "pearson"

    def _names(self) -> list[str]:
        return [SCORE]

    def what(self) -> str:
        """See `TextTask.what`."""
        values = [number(row) for row in self.data.splits["train"]]
        return f"texts with a number from {min(values):g} to {max(values):g}"

    def overrides(self) -> dict[str, Any]:
        """See `TextTask.overrides`."""
        return super().overrides() | {"problem_type": "regression"}

    def target(self, row: Row) -> Any:  # noqa: ANN401 - see the base
        """The number."""
        return number(row)

    def compare(self, logits: Tensor, target: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Squared error."""
        return F.mse_loss(logits[:, 0], target.float(), reduction="sum"), {}

    def measure(self, logits: Any, labels: Any) -> tuple[dict[str, float], tuple[float, float] | None]:  # noqa: ANN401 - see the base
        """Correlations and error."""
        said, true = logits[:, 0].astype(np.float64), labels.astype(np.float64)
        loss = float(((said - true) ** 2).mean())
        return {"pearson": pearson(said, true), "spearman": spearman(said, true), "loss": loss, "rmse": loss**0.5}, None

    def report(self, evaluation: Evaluation) -> list[Section]:
        """The largest errors."""
        said, true = evaluation.details["logits"][:, 0], evaluation.details["labels"]
        rows = self.data.splits[evaluation.split]
        worst = np.argsort(-np.abs(said - true), kind="stable")[:20]
        table = [[f"{true[i]:g}", f"{said[i]:.2f}", shortened(rows[i].values), rows[i].name] for i in worst]
        return [Section("Largest errors", table=ReportTable(("number", "predicted", "text", "where"), table))]


def kind_of(rows: list[Row], options: DataOptions) -> type[TextClassification]:
    """Which of the three tasks the labels ask for: lists of classes, numbers with a point, or classes."""
    labels = [row.values["label"] for row in rows]
    if "labels" in options.columns or any(isinstance(label, list) for label in labels):
        return MultiLabel
    if "score" in options.columns or options.classes == [SCORE]:
        return Regression
    numbers = [as_number(label) for label in labels]
    if options.classes is None and all(n is not None for n in numbers) and any(n is not None and not n.is_integer() for n in numbers):
        return Regression
    return TextClassification


def as_number(label: Any) -> float | None:  # noqa: ANN401 - what a table holds
    """A label as a number, or None."""
    try:
        return None if isinstance(label, bool) else float(label)
    except (TypeError, ValueError):
        return None


def number(row: Row) -> float:
    """The number of a row.

    Raises:
        DataError: It is none, or not finite.
    """
    value = as_number(row.values["label"])
    if value is None or not np.isfinite(value):
        raise DataError(f"{row.name}: the label is {row.values['label']!r}; expected a number")
    return value


def plain_label(label: Any) -> str:  # noqa: ANN401 - what a table holds
    """A class as text; 1.0 is 1."""
    if isinstance(label, float) and label.is_integer():
        label = int(label)
    return str(label).strip()


def shortened(values: dict[str, Any], limit: int = 160) -> str:
    """The beginning of a row's text."""
    text = " ".join(" / ".join(str(values[key]) for key in ("text", "pair") if key in values).split())
    return text if len(text) <= limit else text[: limit - 1] + "…"
