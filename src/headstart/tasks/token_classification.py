"""Token classification: a tag for each word, entities or parts of speech.

A word's tag is learned and read at its first token. Texts longer than `max_length` are cut for
training, and evaluated in several parts.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headstart.auto import AutoModelForTokenClassification
from headstart.data.options import DataOptions
from headstart.data.text_rows import Row, read_tagged
from headstart.data.texts import TextData, hold_out, read_texts
from headstart.errors import ConfigError, listed
from headstart.metrics.classification import confusion_matrix, figures_of_classes, per_class, wilson
from headstart.metrics.text import entity_scores
from headstart.tasks.base import Evaluation
from headstart.tasks.text import (
    BATCH,
    IGNORE,
    TextTask,
    class_index,
    class_names,
    longest_first,
    reading,
)


class TokenClassification(TextTask):
    """Entities: IOB tags, evaluated on exact entities.

    `read` gives `WordTagging` where tags are not IOB tags.
    """

    name: ClassVar[str] = "token-classification"
    headline: ClassVar[str] = "f1"
    finds_entities: ClassVar[bool] = True
    column_roles: ClassVar[tuple[str, ...]] = ("words", "tags")
    rows = staticmethod(read_tagged)
    auto = AutoModelForTokenClassification

    def __init__(self, data: TextData, options: DataOptions) -> None:
        super().__init__(data, options)
        # of all rows: a rare tag may be held out with the few texts that have it
        self.tags = class_names(
            [tag for rows in data.splits.values() for row in rows for tag in row.values["tags"]],
            options,
            "tag",
        )
        learned = {tag for row in data.splits["train"] for tag in row.values["tags"]}
        unknown = [tag for tag in self.tags if tag not in learned]
        if unknown and options.classes is None:
            data.notes.append(f"no training text has the tag {listed(unknown)}")
        if "O" in self.tags and options.classes is None:  # first, as everybody has it
            self.tags = ["O", *(tag for tag in self.tags if tag != "O")]
        self.numbers = {tag: i for i, tag in enumerate(self.tags)}
        for row in (row for rows in data.splits.values() for row in rows):
            row.values["numbers"] = [
                class_index(self.numbers, tag, row.name) for tag in row.values["tags"]
            ]

    @classmethod
    def read(cls, path: str | Path, options: DataOptions) -> Self:
        """See `Task.read`."""
        with reading(options):
            data = read_texts(path, options, read_tagged)
            if options.classes is None:
                hold_out(data, options)
            tags = options.classes or [
                tag for row in data.splits["train"] for tag in row.values["tags"]
            ]
            iob = any(tag.startswith("B-") for tag in tags) or all(
                tag == "O" or tag.startswith("I-") for tag in tags
            )
            return (TokenClassification if iob else WordTagging)(data, options)  # type: ignore[return-value]

    @property
    def labels(self) -> list[str]:
        """See `TextTask.labels`."""
        return self.tags

    def what(self) -> str:
        """See `TextTask.what`."""
        words = sum(len(row.values["words"]) for row in self.data.splits["train"])
        return f"texts, {words} training words with {len(self.tags)} tags"

    def encode(self, split: str) -> list[dict[str, Any]]:
        """See `TextTask.encode`.

        Parts of at most `max_length` tokens, the first alone where they are for training.
        """
        return [
            example
            for part in self.parts(self.data.splits[split])
            for example in self._encoded(part, training=split == "train")
        ]

    def _encoded(self, rows: Sequence[Row], training: bool) -> list[dict[str, Any]]:
        """The examples of some rows."""
        out = self.tokens(
            [row.values["words"] for row in rows],
            is_split_into_words=True,
            truncation=True,
            max_length=self.max_length,
            return_overflowing_tokens=True,
        )
        parts: dict[int, list[dict[str, Any]]] = {}
        for number, which in enumerate(out["overflow_to_sample_mapping"]):
            parts.setdefault(which, []).append(
                {"input_ids": out["input_ids"][number], "words": out.word_ids(number)}
            )
        examples = []
        for i, row in enumerate(rows):
            seen: set[int] = set()
            for part in parts[i]:
                labels = []
                for word in part.pop("words"):
                    labels.append(
                        IGNORE if word is None or word in seen else row.values["numbers"][word]
                    )
                    seen |= set() if word is None else {word}
                part["labels"] = labels
            examples.append(
                parts[i][0]
                | {"rest": parts[i][1:], "cut": len(parts[i]) > 1 and training}
                | {"read": sorted(seen)}  # words that have a token
            )
        return examples

    def tensors(self, example: dict[str, Any]) -> dict[str, Tensor]:
        """See `TextTask.tensors`: input_ids and labels (L,)."""
        return {key: torch.tensor(example[key]) for key in ("input_ids", "labels")}

    def weight(self, batch: dict[str, Tensor]) -> float:
        """See `Task.weight`: words."""
        return float(max(1, int((batch["labels"] != IGNORE).sum())))

    def loss(self, model: nn.Module, inputs: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Task.loss`."""
        logits = model(
            input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]
        ).logits.float()  # (B, L, V)
        words = inputs["labels"] != IGNORE
        scores, labels = logits[words], inputs["labels"][words]  # (words, V)
        loss = F.cross_entropy(
            scores, labels, reduction="sum", label_smoothing=self.recipe.label_smoothing
        )
        return loss, {"accuracy": (scores.detach().argmax(1) == labels).sum()}

    @torch.inference_mode()
    def evaluate(self, model: nn.Module, split: str, device: torch.device) -> Evaluation:
        """See `Task.evaluate`.

        `details` are labels and predicted tags of all words, their probabilities, and where each
        text ends.
        """
        examples = self.encoded[split]
        every = [(i, part) for i, each in enumerate(examples) for part in (each, *each["rest"])]
        positions = longest_first(
            range(len(every)), lambda position: len(every[position][1]["input_ids"])
        )
        found: dict[int, list[int]] = {}  # tags of the words of each part
        certain: dict[int, list[float]] = {}  # their probabilities
        with self.options.progress.counting("evaluating", len(every), self.unit) as seen:
            for start in range(0, len(positions), BATCH):
                some = positions[start : start + BATCH]
                batch = self.collate([self.tensors(every[position][1]) for position in some])
                inputs = self.micro(batch, slice(None), device)
                logits = model(
                    input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]
                ).logits.float()  # (B, L, V)
                words = inputs["labels"] != IGNORE  # (B, L)
                if not torch.isfinite(logits[words]).all():
                    raise ConfigError(
                        "the model's scores are not finite numbers: training diverged; try a"
                        " smaller --lr"
                    )
                chances, tags = logits.softmax(2).max(2)  # 2 × (B, L)
                for row, position in enumerate(some):
                    found[position] = tags[row][words[row]].tolist()
                    certain[position] = chances[row][words[row]].tolist()
                seen(len(some))
        predictions: list[list[int]] = [[] for _ in examples]
        probabilities: list[list[float]] = [[] for _ in examples]
        for position, (i, _) in enumerate(every):
            predictions[i] += found[position]
            probabilities[i] += certain[position]
        evaluation = self.evaluate_predictions(split, predictions)
        evaluation.details["probabilities"] = np.array(
            [each for text in probabilities for each in text], dtype=np.float64
        )
        return evaluation

    def evaluate_predictions(self, split: str, predictions: list[list[int]]) -> Evaluation:
        """The numbers of predicted tags (of words that the tokenizer gave at least one token)."""
        true = [
            [n for part in (e, *e["rest"]) for n in part["labels"] if n != IGNORE]
            for e in self.encoded[split]
        ]
        labels, predicted = (
            np.array([n for each in which for n in each], dtype=np.int64)
            for which in (true, predictions)
        )
        details = {
            "labels": labels,
            "predicted": predicted,
            "ends": np.cumsum([len(each) for each in true]),
        }
        right = int((labels == predicted).sum())
        metrics = self.measure(
            [[self.tags[n] for n in each] for each in true],
            [[self.tags[n] for n in each] for each in predictions],
        )
        metrics["accuracy"] = right / max(1, len(labels))
        return Evaluation(split, len(true), metrics, self.interval(right, len(labels)), details)

    def class_figures(self, evaluation: Evaluation) -> dict[str, Any]:
        """See `Task.class_figures`: of words by tag, and of exact entities by kind."""
        details = evaluation.details
        confusion = confusion_matrix(details["labels"], details["predicted"], len(self.tags))
        found = figures_of_classes(confusion, self.tags)
        if self.finds_entities:
            ends = details["ends"][:-1]
            true, predicted = (
                [[self.tags[n] for n in part] for part in np.split(details[key], ends)]
                for key in ("labels", "predicted")
            )
            found["entities"] = {
                kind: {"count": s.count, "precision": s.precision, "recall": s.recall, "f1": s.f1}
                for kind, s in entity_scores(true, predicted).items()
                if kind
            }
        return found

    def prediction_rows(self, evaluation: Evaluation) -> list[tuple[str, ...]]:
        """See `Task.prediction_rows`: one row for each word."""
        examples, rows = self.encoded[evaluation.split], self.data.splits[evaluation.split]
        names = [
            f"{row.name} word {word + 1}: {row.values['words'][word]}"
            for example, row in zip(examples, rows, strict=True)
            for word in example["read"]
        ]
        details = evaluation.details
        columns = (details[key].tolist() for key in ("labels", "predicted", "probabilities"))
        return [
            (name, self.tags[label], self.tags[tag], f"{chance:.6g}")
            for name, label, tag, chance in zip(names, *columns, strict=True)
        ]

    def measure(self, true: list[list[str]], predictions: list[list[str]]) -> dict[str, float]:
        """Scores of exact entities."""
        whole = entity_scores(true, predictions)[""]
        return {
            "f1": whole.f1,
            "precision": whole.precision,
            "recall": whole.recall,
            "entities": float(whole.count),
        }

    def interval(self, right: int, count: int) -> tuple[float, float] | None:
        """Of the headline; F1 is not a fraction of independent trials."""
        return None


class WordTagging(TokenClassification):
    """A tag for each word by itself, such as its part of speech."""

    headline: ClassVar[str] = "accuracy"
    finds_entities: ClassVar[bool] = False

    def measure(self, true: list[list[str]], predictions: list[list[str]]) -> dict[str, float]:
        """Mean F1 of the tags that occur."""
        labels, predicted = (
            np.array([self.numbers[t] for each in which for t in each], dtype=np.int64)
            for which in (true, predictions)
        )
        table = per_class(confusion_matrix(labels, predicted, len(self.tags)))
        return {"macro_f1": float(table.f1[table.count > 0].mean()) if len(labels) else 0.0}

    def interval(self, right: int, count: int) -> tuple[float, float] | None:
        """See the base."""
        return wilson(right, count)
