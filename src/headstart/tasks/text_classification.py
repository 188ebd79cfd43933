"""Text classification: a class, several classes, or a number for each text or pair of texts."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from headstart.auto import AutoModelForSequenceClassification
from headstart.data.labels import (
    MULTI,
    REGRESSION,
    SINGLE,
    WORDS,
    as_class,
    check_list,
    classes_in,
    kind_of,
    look_alikes,
    numbers_in,
)
from headstart.data.options import TEXT_ROLES, DataOptions
from headstart.data.text_rows import Row, read_labelled
from headstart.data.texts import TextData, hold_out, read_texts
from headstart.metrics.regression import spearman
from headstart.metrics.text import matthews
from headstart.pipelines.base import batched
from headstart.recipe import Recipe
from headstart.tasks.base import Evaluation, HeadTask, Inputs, joined_groups
from headstart.tasks.problems import problem_of
from headstart.tasks.text import (
    BATCH,
    TextTask,
    class_index,
    class_names,
    last_linear,
    longest_first,
    reading,
)

SCORE = "score"  # name of the one output of a regression


class TextClassification(TextTask, HeadTask):
    """A class, several classes or a number for each text or pair, as the labels of the data say."""

    name: ClassVar[str] = "text-classification"
    column_roles: ClassVar[tuple[str, ...]] = TEXT_ROLES
    option_names: ClassVar[tuple[str, ...]] = ("max_error",)
    default_model: ClassVar[str | None] = "yoso-mini"
    rows = staticmethod(read_labelled)
    auto = AutoModelForSequenceClassification

    def __init__(self, data: TextData, options: DataOptions, kind: str) -> None:
        super().__init__(data, options)
        self.kind = kind
        self.problem = problem_of(kind, multi_label_classification="micro_f1", regression="pearson")
        self._classes = self._find_classes()
        self.numbers = {name: i for i, name in enumerate(self._classes)}
        if options.classes is None and kind != REGRESSION:
            data.notes += look_alikes(self._classes)
        self._places: dict[str, dict[str, Any]] = {}  # examples by the digest of their tokens

    @property
    def headline(self) -> str:
        """See `Task.headline`."""
        return self.problem.headline

    @classmethod
    def read(cls, path: str | Path, options: DataOptions) -> Self:
        """See `Task.read`."""
        with reading(options):
            data = read_texts(path, options, read_labelled)
            kind = options.problem_type or kind_of_rows(
                [row for rows in data.splits.values() for row in rows], options
            )
            for row in (row for rows in data.splits.values() for row in rows):
                row.values["label"] = _parsed(row, kind)
            if options.classes is None:
                strata = None
                if kind == SINGLE:
                    numbers = {
                        label: i
                        for i, label in enumerate(
                            sorted({row.values["label"] for row in data.splits["train"]})
                        )
                    }
                    strata = [numbers[row.values["label"]] for row in data.splits["train"]]
                hold_out(data, options, strata)
                if kind != SINGLE:
                    data.notes.append(
                        f"labels: {WORDS[kind]} ({kind}; --problem-type chooses otherwise)"
                    )
            return cls(data, options, kind)

    def _find_classes(self) -> list[str]:
        if self.kind == REGRESSION:
            return [SCORE]
        labels = [row.values["label"] for row in self.data.splits["train"]]
        return class_names(
            [each for label in labels for each in label] if self.kind == MULTI else labels,
            self.options,
        )

    @property
    def classes(self) -> list[str]:
        """See `HeadTask.classes`."""
        return self._classes

    @property
    def labels(self) -> list[str]:
        """See `TextTask.labels`."""
        return self.classes

    def what(self) -> str:
        """See `TextTask.what`."""
        rows = self.data.splits["train"]
        texts, labels = (
            "pairs of texts" if "pair" in rows[0].values else "texts",
            [row.values["label"] for row in rows],
        )
        if self.kind == REGRESSION:
            return f"{texts} with a number from {min(labels):g} to {max(labels):g}"
        if self.kind == MULTI:
            return (
                f"{texts} with {np.mean([len(label) for label in labels]):.1f} of"
                f" {len(self.classes)} classes each"
            )
        counts = np.bincount([self.numbers[label] for label in labels], minlength=len(self.classes))
        balance = (
            f"{counts.min()} to {counts.max()}"
            if counts.min() < counts.max()
            else str(counts.min())
        )
        return f"{texts} in {len(self.classes)} classes of {balance} training examples"

    def overrides(self) -> dict[str, Any]:
        """See `TextTask.overrides`."""
        return self.problem.overrides(self.classes)

    def overrides_of(self, config: Any) -> dict[str, Any]:
        """See `TextTask.overrides_of`: a network that pools by the mean compares two texts."""
        pairs = "pair" in self.data.splits["train"][0].values
        mean = getattr(config, "classifier_pooling", "first") == "mean"
        return {"classifier_pooling": "pair"} if pairs and mean else {}

    def build(self, name: str, recipe: Recipe, *, revision: str | None = None) -> nn.Module:
        """See `Task.build`."""
        targets = np.array([self.target(row) for row in self.data.splits["train"]])
        self.problem.look(self.classes, targets, recipe.class_weights)
        return super().build(name, recipe, revision=revision)

    def target(self, row: Row) -> Any:
        """What the loss compares with: a class, zeros and ones, or a number."""
        label = row.values["label"]
        if self.kind == REGRESSION:
            return label
        if self.kind == SINGLE:
            return class_index(self.numbers, label, row.name)
        on = {class_index(self.numbers, each, row.name) for each in label}
        return [float(i in on) for i in range(len(self.classes))]

    def encode(self, split: str) -> list[dict[str, Any]]:
        """See `TextTask.encode`."""
        rows = self.data.splits[split]
        paired = bool(rows) and "pair" in rows[0].values
        examples: list[dict[str, Any]] = []
        for part in self.parts(rows):
            pairs = [row.values["pair"] for row in part] if paired else None
            ids, cut = self.token_ids([row.values["text"] for row in part], pairs)
            examples += [
                {"input_ids": each, "target": self.target(row), "cut": longer}
                for each, row, longer in zip(ids, part, cut, strict=True)
            ]
        return examples

    def loss(self, model: nn.Module, inputs: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Task.loss`: what the labels ask for, see `headstart.tasks.problems`."""
        logits = model(
            input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]
        ).logits.float()  # (B, V)
        return self.problem.compare(logits, inputs["target"], self.recipe.label_smoothing)

    def finish(self, model: nn.Module) -> None:
        """See `Task.finish`."""
        self.problem.finish(last_linear(model, len(self.classes)))

    def evaluate(self, model: nn.Module, split: str, device: torch.device) -> Evaluation:
        """See `Task.evaluate`: `details` are logits or regression values (N, V) and labels."""
        scores = np.stack(self.scores(model, split, device, lambda out: out.logits))
        return self.evaluate_scores(split, self.problem.in_units(scores))

    def evaluate_scores(self, split: str, scores: NDArray[np.float32]) -> Evaluation:
        """See `HeadTask.evaluate_scores`."""
        labels = np.array([each["target"] for each in self.encoded[split]])
        metrics, interval = self.problem.measure(scores, labels)
        if self.kind == SINGLE:
            predicted = scores.argmax(1)
            metrics["mcc"] = matthews(labels, predicted)
            if scores.shape[1] == 2:  # of the second class, as GLUE counts
                both, either = (predicted & labels).sum(), predicted.sum() + labels.sum()
                metrics["f1"] = float(2 * both / max(1, either))
        elif self.kind == REGRESSION:
            values, true = scores[:, 0].astype(np.float64), labels.astype(np.float64)
            metrics["spearman"] = spearman(values, true)
        details = {"logits": scores, "labels": labels}
        return Evaluation(split, len(labels), metrics, interval, details)

    # Features -------------------------------------------------------------------------------------

    def head(self, model: nn.Module) -> nn.Linear:
        """See `HeadTask.head`: square layers of the head before the last become identities."""
        layer = last_linear(model, len(self.classes))
        pass_on(model, layer)
        return layer

    def preprocessing(self) -> dict[str, Any]:
        """See `HeadTask.preprocessing`."""
        return {"texts": "token ids"}

    def feature_digests(self) -> dict[str, list[str]]:
        """See `HeadTask.feature_digests`: of the tokens."""
        if not self.encoded:
            self.prepare(None)
        self._places = {}
        digests: dict[str, list[str]] = {split: [] for split in self.encoded}
        for split, examples in self.encoded.items():
            for example in examples:
                digest = hashlib.sha256(repr(example["input_ids"]).encode()).hexdigest()
                digests[split].append(digest)
                self._places[digest] = example
        return digests

    def feature_sizes(self, digests: Sequence[str]) -> list[int]:
        """See `HeadTask.feature_sizes`: features cost by the token."""
        return [len(self._places[digest]["input_ids"]) for digest in digests]

    def feature_inputs(self, digests: Sequence[str]) -> Iterator[tuple[list[str], Inputs]]:
        """See `HeadTask.feature_inputs`: texts alike in length together."""
        ordered = longest_first(digests, lambda each: len(self._places[each]["input_ids"]))
        for part in batched(ordered, BATCH):
            batch = self.collate([self.tensors(self._places[digest]) for digest in part])
            yield part, {key: batch[key] for key in ("input_ids", "attention_mask")}

    def groups(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """See `HeadTask.groups`; rows that the data groups share one too."""
        same = super().groups(rows)
        _, first = np.unique(same, return_index=True)
        pairs = np.stack([first[same], np.arange(len(same))], axis=1)
        return joined_groups(len(rows), pairs, self.data.groups()["train"][rows])

    def targets(self, split: str) -> NDArray[Any]:
        """See `HeadTask.targets`."""
        targets = np.array([each["target"] for each in self.encoded[split]])
        return targets[:, None] if self.kind == REGRESSION else targets


def pass_on(model: nn.Module, last: nn.Linear) -> None:
    """Makes the square layers of a new head identities, so that fixed features reach the last layer
    whole.
    """
    heads: tuple[str, ...] = getattr(model, "heads", ())
    for name, layer in model.named_modules():
        inside = any(name.startswith(head + ".") for head in heads)
        if (
            inside
            and isinstance(layer, nn.Linear)
            and layer is not last
            and layer.in_features == layer.out_features
        ):
            nn.init.eye_(layer.weight)
            nn.init.zeros_(layer.bias)


def kind_of_rows(rows: list[Row], options: DataOptions) -> str:
    """What the labels are: what a column or the model promises, else what they look like."""
    if options.classes == [SCORE] or "score" in options.columns:
        return REGRESSION
    kind = kind_of([(row.values["label"],) for row in rows], several="labels" in options.columns)
    if "labels" in options.columns:
        return MULTI
    return SINGLE if options.classes is not None and kind == REGRESSION else kind


def _parsed(row: Row, kind: str) -> Any:
    label = (row.values["label"],)
    if kind == REGRESSION:
        return numbers_in(label, ("the label",), row.name)[0]
    if kind == MULTI:
        return classes_in(label, ("the label",), row.name)
    check_list(label[0], row.name, "the label")
    return as_class(label[0])
