"""Multiple choice: which of several texts goes on from the first.

Letters: B questions, C choices, L tokens, N questions of a split.
"""

from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headstart.auto import AutoModelForMultipleChoice
from headstart.data.options import DataOptions
from headstart.data.text_rows import read_choices
from headstart.data.texts import TextData
from headstart.errors import DataError
from headstart.metrics.classification import (
    confusion_matrix,
    figures_of_classes,
    negative_log_likelihood,
    softmax,
    wilson,
)
from headstart.tasks.base import Evaluation
from headstart.tasks.text import TextTask


class MultipleChoice(TextTask):
    """The right one of several texts, such as SWAG's endings."""

    name: ClassVar[str] = "multiple-choice"
    column_roles: ClassVar[tuple[str, ...]] = ("text", "choices", "label", "split")
    option_names: ClassVar[tuple[str, ...]] = ("max_error",)
    headline: ClassVar[str] = "accuracy"
    rows = staticmethod(read_choices)
    auto = AutoModelForMultipleChoice

    def __init__(self, data: TextData, options: DataOptions) -> None:
        super().__init__(data, options)
        rows = [row for each in data.splits.values() for row in each]
        self.choices = len(rows[0].values["choices"])
        other = next((row for row in rows if len(row.values["choices"]) != self.choices), None)
        if other is not None:
            counts = f"{len(other.values['choices'])} choices, {rows[0].name} has {self.choices}"
            raise DataError(f"{other.name} has {counts}; all need the same number")

    def what(self) -> str:
        """See `TextTask.what`."""
        return f"questions with {self.choices} choices"

    def encode(self, split: str) -> list[dict[str, Any]]:
        """See `TextTask.encode`: `input_ids` are lists of the choices' tokens."""
        examples: list[dict[str, Any]] = []
        for part in self.parts(self.data.splits[split]):
            texts = [row.values["text"] for row in part for _ in row.values["choices"]]
            choices = [choice for row in part for choice in row.values["choices"]]
            ids, cut = self.token_ids(texts, choices)
            for i, row in enumerate(part):
                own = slice(i * self.choices, (i + 1) * self.choices)
                examples.append(
                    {"input_ids": ids[own], "target": row.values["label"], "cut": any(cut[own])}
                )
        return examples

    def tensors(self, example: dict[str, Any]) -> dict[str, Tensor]:
        """See `TextTask.tensors`: input_ids and attention_mask (C, L)."""
        longest = max(map(len, example["input_ids"]))
        pad = self.tokenizer.pad_token_id
        # (C, L)
        ids = torch.tensor([each + [pad] * (longest - len(each)) for each in example["input_ids"]])
        mask = torch.tensor(
            [[1] * len(each) + [0] * (longest - len(each)) for each in example["input_ids"]]
        )
        return {"input_ids": ids, "attention_mask": mask, "target": torch.tensor(example["target"])}

    @staticmethod
    def longest_of(example: dict[str, Any]) -> list[int]:
        """See `TextTask.longest_of`."""
        longest: list[int] = max(example["input_ids"], key=len)
        return longest

    def loss(self, model: nn.Module, inputs: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Task.loss`."""
        logits = model(
            input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]
        ).logits.float()  # (B, C)
        loss = F.cross_entropy(
            logits, inputs["target"], reduction="sum", label_smoothing=self.recipe.label_smoothing
        )
        return loss, {"accuracy": (logits.detach().argmax(1) == inputs["target"]).sum()}

    def evaluate(self, model: nn.Module, split: str, device: torch.device) -> Evaluation:
        """See `Task.evaluate`: `details` are logits (N, C) and labels (N,)."""
        logits = np.stack(self.scores(model, split, device, lambda out: out.logits))
        labels = np.array([each["target"] for each in self.encoded[split]], dtype=np.int64)
        right = logits.argmax(1) == labels
        metrics = {
            "accuracy": float(right.mean()),
            "loss": negative_log_likelihood(logits, labels),
            "chance": 1 / self.choices,
        }
        return Evaluation(
            split,
            len(labels),
            metrics,
            wilson(int(right.sum()), len(labels)),
            {"logits": logits, "labels": labels},
        )

    def class_figures(self, evaluation: Evaluation) -> dict[str, Any]:
        """See `Task.class_figures`: of the choices by their number, from 0."""
        logits, labels = evaluation.details["logits"], evaluation.details["labels"]
        confusion = confusion_matrix(labels, logits.argmax(1), self.choices)
        return figures_of_classes(confusion, [str(number) for number in range(self.choices)])

    def prediction_rows(self, evaluation: Evaluation) -> list[tuple[str, ...]]:
        """See `Task.prediction_rows`: the numbers of the choices, from 0."""
        logits, labels = evaluation.details["logits"], evaluation.details["labels"]
        calibration = evaluation.calibration
        chances = softmax(logits, 1.0 if calibration is None else calibration.temperature)
        return [
            (row.name, str(label), str(found.argmax()), f"{found.max():.6g}")
            for row, label, found in zip(
                self.data.splits[evaluation.split], labels.tolist(), chances, strict=True
            )
        ]
