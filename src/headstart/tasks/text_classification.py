"""Text classification: a class, several classes, or a number for each text or pair of texts."""

import hashlib
import time
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from headstart.auto import AutoModelForSequenceClassification
from headstart.data.features import FeatureStore
from headstart.data.labels import (
    MULTI,
    REGRESSION,
    SINGLE,
    WORDS,
    as_class,
    classes_in,
    kind_of,
    numbers_in,
)
from headstart.data.options import DataOptions
from headstart.data.texts import Row, TextData, hold_out, read_labelled, read_texts
from headstart.metrics.text import matthews, spearman
from headstart.progress import Progress
from headstart.recipe import Recipe
from headstart.report.page import Section
from headstart.report.page import Table as ReportTable
from headstart.report.problems import problem_sections
from headstart.tasks.base import Evaluation, TunesHead
from headstart.tasks.problems import problem_of
from headstart.tasks.text import TextTask, class_index, class_names, last_linear
from headstart.training.estimate import HeadCost, peak_memory
from headstart.training.head import fitting_seconds, inputs_of, install, model_key

SCORE = "score"  # name of the one output of a regression


class TextClassification(TextTask, TunesHead):
    """A class, several classes or a number for each text or pair, as the labels of the data say."""

    name: ClassVar[str] = "text-classification"
    rows = staticmethod(read_labelled)
    auto = AutoModelForSequenceClassification

    def __init__(self, data: TextData, options: DataOptions, kind: str) -> None:
        super().__init__(data, options)
        self.kind = kind
        self.problem = problem_of(kind, multi_label_classification="micro_f1", regression="pearson")
        self.names = self._names()

    @property
    def headline(self) -> str:
        """See `Task.headline`."""
        return self.problem.headline

    @classmethod
    def read(cls, path: str | Path, options: DataOptions) -> Self:
        """See `Task.read`."""
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

    def _names(self) -> list[str]:
        if self.kind == REGRESSION:
            return [SCORE]
        labels = [row.values["label"] for row in self.data.splits["train"]]
        return class_names(
            [each for label in labels for each in label] if self.kind == MULTI else labels,
            self.options,
        )

    @property
    def labels(self) -> list[str]:
        """See `TextTask.labels`."""
        return self.names

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
                f"{texts} with {np.mean([len(label) for label in labels]):.1f} of {len(self.names)}"
                " classes each"
            )
        counts = np.bincount(
            [self.names.index(label) for label in labels], minlength=len(self.names)
        )
        balance = (
            f"{counts.min()} to {counts.max()}"
            if counts.min() < counts.max()
            else str(counts.min())
        )
        return f"{texts} in {len(self.names)} classes of {balance} training examples"

    def overrides(self) -> dict[str, Any]:
        """See `TextTask.overrides`."""
        return self.problem.overrides(self.names)

    def build(self, name: str, recipe: Recipe, *, revision: str | None = None) -> nn.Module:
        """See `Task.build`."""
        targets = np.array([self.target(row) for row in self.data.splits["train"]])
        self.problem.look(self.names, targets, recipe.class_weights)
        return super().build(name, recipe, revision=revision)

    def target(self, row: Row) -> Any:  # noqa: ANN401 - a number or a list of them
        """What the loss compares with: a class, zeros and ones, or a number."""
        label = row.values["label"]
        if self.kind == REGRESSION:
            return label
        if self.kind == SINGLE:
            return class_index(self.names, label, row.name)
        on = {class_index(self.names, each, row.name) for each in label}
        return [float(i in on) for i in range(len(self.names))]

    def encode(self, split: str) -> list[dict[str, Any]]:
        """See `TextTask.encode`."""
        rows = self.data.splits[split]
        pairs = [row.values["pair"] for row in rows] if rows and "pair" in rows[0].values else None
        texts = [row.values["text"] for row in rows]
        lengths = [len(ids) for ids in self.token_ids(texts, pairs)]
        ids = self.token_ids(texts, pairs, truncation="longest_first", max_length=self.max_length)
        return [
            {"input_ids": each, "target": self.target(row), "cut": length > len(each)}
            for each, row, length in zip(ids, rows, lengths, strict=True)
        ]

    def loss(self, model: nn.Module, inputs: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Task.loss`: what the labels ask for, see `headstart.tasks.problems`."""
        logits = model(
            input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]
        ).logits.float()  # (B, V)
        return self.problem.compare(logits, inputs["target"], self.recipe.label_smoothing)

    def finish(self, model: nn.Module) -> None:
        """See `Task.finish`."""
        self.problem.finish(last_linear(model, len(self.names)))

    def evaluate(self, model: nn.Module, split: str, device: torch.device) -> Evaluation:
        """See `Task.evaluate`: `details` are logits (N, V) (numbers in their units) and labels."""
        return self._judged(
            split, np.stack(self.scores(model, split, device, lambda out: out.logits))
        )

    def _judged(self, split: str, scores: NDArray[np.float32]) -> Evaluation:
        logits, labels = self.problem.in_units(scores), self._targets(split)
        metrics, interval = self.problem.measure(logits, labels)
        if self.kind == SINGLE:
            said = logits.argmax(1)
            metrics["mcc"] = matthews(labels, said, logits.shape[1])
            if logits.shape[1] == 2:  # of the second class, as GLUE counts
                both = int(((said == 1) & (labels == 1)).sum())
                metrics["f1"] = 2 * both / max(1, int((said == 1).sum() + (labels == 1).sum()))
        elif self.kind == REGRESSION:
            metrics["spearman"] = spearman(
                logits[:, 0].astype(np.float64), labels.astype(np.float64)
            )
        return Evaluation(
            split, len(labels), metrics, interval, {"logits": logits, "labels": labels}
        )

    def _targets(self, split: str) -> NDArray[Any]:
        return np.array([each["target"] for each in self.encoded[split]])

    # A head on fixed features ---------------------------------------------------------------------

    def head_cost(self, model: nn.Module, device: torch.device) -> HeadCost:
        """See `TunesHead.head_cost`: features cost by the token."""
        if not self.encoded:
            self.prepare(None)
        _, _, missing = self._missing(model)
        batches = [
            inputs
            for split, some in missing.items()
            for _, inputs in self.batches(split, device, some)
        ]
        features = 0.0
        if batches:
            usual = batches[len(batches) // 2]
            for _ in range(2):  # the first pass also allocates
                began = time.perf_counter()
                with torch.inference_mode():
                    model(input_ids=usual["input_ids"], attention_mask=usual["attention_mask"])
                seconds = time.perf_counter() - began
            features = (
                seconds
                * sum(each["input_ids"].numel() for each in batches)
                / usual["input_ids"].numel()
            )
        fit = fitting_seconds(
            len(self.encoded["train"]),
            last_linear(model, len(self.names)).in_features,
            len(self.names),
        )
        return HeadCost(features, fit, peak_memory(device))

    def tune_head(
        self, model: nn.Module, device: torch.device, progress: Progress
    ) -> dict[str, Evaluation]:
        """See `TunesHead.tune_head`: the last layer.

        Square layers of the head before it pass on what they get.
        """
        layer = last_linear(model, len(self.names))
        pass_on(model, layer)
        features = self._features(model, layer, device, progress)
        targets = self._targets("train")
        targets = targets[:, None] if self.kind == REGRESSION else targets  # (N, 1)
        fit = self.problem.fit(features["train"], targets, len(self.names), self.recipe.seed)
        install(layer, fit)
        how = (
            f"chosen by {fit.folds}-fold cross-validation"
            if fit.losses
            else "not chosen: a class has a single text"
        )
        self.data.notes.append(f"regularisation C = {fit.strength:g}, {how}")
        progress.say(self.data.notes[-1])
        return {
            split: self._judged(split, rows @ fit.weight.T + fit.bias)
            for split, rows in features.items()
            if split != "train"
        }

    def _missing(
        self, model: nn.Module
    ) -> tuple[FeatureStore, dict[str, list[str]], dict[str, list[int]]]:
        """The store, the digest of every text, and the texts whose features the store lacks."""
        store = FeatureStore(model_key(model, {"texts": "token ids"}))
        digests = {
            s: [hashlib.sha256(repr(e["input_ids"]).encode()).hexdigest() for e in parts]
            for s, parts in self.encoded.items()
        }
        return (
            store,
            digests,
            {
                split: [i for i, name in enumerate(names) if name not in store]
                for split, names in digests.items()
            },
        )

    @torch.inference_mode()
    def _features(
        self, model: nn.Module, layer: nn.Linear, device: torch.device, progress: Progress
    ) -> dict[str, NDArray[np.float32]]:
        """What goes into the last layer, (N, D) for every split.

        From the store, or computed and kept there.
        """
        store, digests, missing = self._missing(model)
        total, done, began = sum(map(len, missing.values())), 0, time.perf_counter()
        if known := sum(map(len, digests.values())) - total:
            progress.say(f"features of {known} texts are known from before")
        progress.start("features", total, unit="texts")
        for split, some in missing.items():
            for numbers, inputs in self.batches(split, device, some):
                with inputs_of(layer) as seen:
                    model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
                store.add([digests[split][i] for i in numbers], seen[0].float().cpu().numpy())
                done += len(numbers)
                progress.update(done, {}, done / (time.perf_counter() - began))
        return {split: store[names] for split, names in digests.items()}

    def report(self, evaluation: Evaluation) -> list[Section]:
        """See `Task.report`."""
        rows = self.data.splits[evaluation.split]
        sections = problem_sections(
            self.kind, evaluation, self.names, [row.name for row in rows], None
        )
        logits, labels = evaluation.details["logits"], evaluation.details["labels"]
        if self.kind == SINGLE:
            sections += self._mistakes(logits, labels, rows)
        elif self.kind == REGRESSION:
            worst = np.argsort(-np.abs(logits[:, 0] - labels), kind="stable")[:20]
            table = [
                [f"{labels[i]:g}", f"{logits[i, 0]:.2f}", shortened(rows[i].values), rows[i].name]
                for i in worst
            ]
            sections.append(
                Section(
                    "Largest errors",
                    table=ReportTable(("number", "predicted", "text", "where"), table),
                )
            )
        return sections

    def _mistakes(self, logits: Any, labels: Any, rows: list[Row]) -> list[Section]:  # noqa: ANN401 - arrays
        sure = torch.from_numpy(logits).softmax(1).max(1).values.numpy()
        wrong = [i for i in np.argsort(-sure, kind="stable") if logits[i].argmax() != labels[i]][
            :20
        ]
        said = [f"{self.names[logits[i].argmax()]} {sure[i]:.0%}" for i in wrong]
        table = [
            [self.names[labels[i]], answer, shortened(rows[i].values), rows[i].name]
            for i, answer in zip(wrong, said, strict=True)
        ]
        text = "What the model was surest of and got wrong: hard texts, or wrong labels."
        head = ("class", "predicted", "text", "where")
        return (
            [Section("Most confident mistakes", text, table=ReportTable(head, table))]
            if table
            else []
        )


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


def _parsed(row: Row, kind: str) -> Any:  # noqa: ANN401 - a class, a list of them, or a number
    label = (row.values["label"],)
    if kind == REGRESSION:
        return numbers_in(label, ("the label",), row.name)[0]
    return classes_in(label, ("the label",), row.name) if kind == MULTI else as_class(label[0])


def shortened(values: dict[str, Any], limit: int = 160) -> str:
    """The beginning of a row's text."""
    text = " ".join(
        " / ".join(str(values[key]) for key in ("text", "pair") if key in values).split()
    )
    return text if len(text) <= limit else text[: limit - 1] + "…"
