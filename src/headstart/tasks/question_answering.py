"""Question answering: the words of a context that answer a question, or that there is no answer.

A long context is read in windows that overlap by a quarter. The answer is the best span of at most
30 tokens over all windows; a question has none where the scores of the first token, which stands
for that, are higher (SQuAD 2.0).
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from headstart.auto import AutoModelForQuestionAnswering
from headstart.data.options import DataOptions
from headstart.data.text_rows import Row, read_questions
from headstart.data.texts import TextData
from headstart.errors import ConfigError
from headstart.metrics.text import answer_scores
from headstart.tasks.base import Evaluation
from headstart.tasks.text import BATCH, TextTask, longest_first

LONGEST_ANSWER = 30  # tokens


class QuestionAnswering(TextTask):
    """Spans of a context: SQuAD's files of either version."""

    name: ClassVar[str] = "question-answering"
    prediction_columns: ClassVar[tuple[str, ...]] = ("label", "prediction", "f1", "exact_match")
    headline: ClassVar[str] = "f1"
    column_roles: ClassVar[tuple[str, ...]] = ("answers",)
    rows = staticmethod(read_questions)
    auto = AutoModelForQuestionAnswering

    def __init__(self, data: TextData, options: DataOptions) -> None:
        super().__init__(data, options)
        self.may_be_unanswered = any(
            not row.values["answers"] for rows in data.splits.values() for row in rows
        )

    def what(self) -> str:
        """See `TextTask.what`."""
        none = sum(not row.values["answers"] for row in self.data.splits["train"])
        return "questions" + (
            f", {none} of the training ones without an answer" if self.may_be_unanswered else ""
        )

    def encode(self, split: str) -> list[dict[str, Any]]:
        """See `TextTask.encode`.

        Each question's windows, with the tokens of the first answer where it lies inside.
        """
        return [
            example
            for part in self.parts(self.data.splits[split])
            for example in self._encoded(part)
        ]

    def _encoded(self, rows: Sequence[Row]) -> list[dict[str, Any]]:
        """The windows of some questions."""
        free = self.max_length - self.tokenizer.num_special_tokens_to_add(pair=True)
        questions = [row.values["question"] for row in rows]
        if free < 8:
            raise ConfigError(
                f"max_length={self.max_length} is too short for questions and contexts"
            )
        whole = self.tokens(questions, add_special_tokens=False)["input_ids"]
        for i, ids in enumerate(whole):
            if len(ids) > free // 2:  # a question leaves at least half of the window to the context
                questions[i] = self.tokenizer.decode(ids[: free // 2])
        out = self.tokens(
            questions,
            [row.values["context"] for row in rows],
            truncation="only_second",
            max_length=self.max_length,
            stride=free // 8,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        windows: list[list[dict[str, Any]]] = [[] for _ in rows]
        for part, which in enumerate(out["overflow_to_sample_mapping"]):
            inside = [each == 1 for each in out.sequence_ids(part)]
            offsets = [
                pair if kept else (-1, -1)
                for pair, kept in zip(out["offset_mapping"][part], inside, strict=True)
            ]
            answers = rows[which].values["answers"]
            windows[which].append(
                {
                    "input_ids": out["input_ids"][part],
                    # (L, 2) characters of the context, -1 outside it
                    "offsets": np.array(offsets, dtype=np.int64),
                    "span": token_span(offsets, answers[0]) if answers else (0, 0),
                }
            )
        return [
            {"windows": each, "answered": bool(row.values["answers"])}
            for each, row in zip(windows, rows, strict=True)
        ]

    def example(self, index: int, rng: np.random.Generator) -> dict[str, Tensor]:
        """See `Task.example`: a window, every other time one that holds the answer."""
        example = self.encoded["train"][index]
        holding = [window for window in example["windows"] if window["span"] != (0, 0)]
        windows = holding if holding and rng.random() < 0.5 else example["windows"]
        window = windows[int(rng.integers(len(windows)))]
        return {
            "input_ids": torch.tensor(window["input_ids"]),
            "target": torch.tensor(window["span"]),
        }

    def loss(self, model: nn.Module, inputs: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Task.loss`: mean of the cross-entropies of first and last token."""
        out = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
        loss = torch.zeros((), device=inputs["input_ids"].device)
        right = torch.ones(len(inputs["target"]), dtype=torch.bool, device=loss.device)
        for i, logits in enumerate((out.start_logits, out.end_logits)):  # (B, L) each
            logits = logits.float().masked_fill(inputs["attention_mask"] == 0, -1e9)
            loss = loss + F.cross_entropy(logits, inputs["target"][:, i], reduction="sum") / 2
            right &= logits.detach().argmax(1) == inputs["target"][:, i]
        return loss, {"exact_span": right.sum()}

    @torch.inference_mode()
    def evaluate(self, model: nn.Module, split: str, device: torch.device) -> Evaluation:
        """See `Task.evaluate`: `details` are each question's answer, exact match and F1."""
        flat = [
            (i, window)
            for i, example in enumerate(self.encoded[split])
            for window in example["windows"]
        ]
        flat = longest_first(flat, lambda each: len(each[1]["input_ids"]))
        best: dict[int, tuple[float, str]] = {}
        nothing: dict[int, float] = {}
        rows = self.data.splits[split]
        with self.options.progress.counting("evaluating", len(flat), "windows") as seen:
            for start in range(0, len(flat), BATCH):
                some = flat[start : start + BATCH]
                batch = self.collate(
                    [{"input_ids": torch.tensor(window["input_ids"])} for _, window in some]
                )
                out = model(**self.micro(batch, slice(None), device))
                starts, ends = (
                    logits.float().cpu().numpy() for logits in (out.start_logits, out.end_logits)
                )
                if not np.isfinite(starts + ends).all():
                    raise ConfigError(
                        "the model's scores are not finite numbers: training diverged; try a"
                        " smaller --lr"
                    )
                for j, (i, window) in enumerate(some):
                    found = best_span(starts[j], ends[j], window["offsets"])
                    nothing[i] = min(nothing.get(i, np.inf), float(starts[j, 0] + ends[j, 0]))
                    if found and found[0] > best.get(i, (-np.inf, ""))[0]:
                        best[i] = (found[0], rows[i].values["context"][found[1] : found[2]])
                seen(len(some))
        predictions = []
        for i in range(len(rows)):
            score, text = best.get(i, (-np.inf, ""))
            predictions.append("" if self.may_be_unanswered and nothing[i] > score else text)
        return self._evaluate_answers(split, predictions)

    def _evaluate_answers(self, split: str, predictions: list[str]) -> Evaluation:
        rows = self.data.splits[split]
        pairs = [
            answer_scores(text, [a["text"] for a in row.values["answers"]])
            for text, row in zip(predictions, rows, strict=True)
        ]
        scores = np.array(pairs).reshape(-1, 2)  # (N, 2)
        metrics = {"f1": float(scores[:, 1].mean()), "exact_match": float(scores[:, 0].mean())}
        answered = np.array([bool(row.values["answers"]) for row in rows])
        if self.may_be_unanswered and answered.any() and not answered.all():
            metrics |= {
                "f1_answered": float(scores[answered, 1].mean()),
                "no_answer_accuracy": float(scores[~answered, 0].mean()),
            }
        return Evaluation(
            split,
            len(rows),
            metrics,
            None,
            {"scores": scores, "answers": np.array(predictions, dtype=np.str_)},
        )

    def prediction_rows(self, evaluation: Evaluation) -> list[tuple[str, ...]]:
        """See `Task.prediction_rows`: the first of the right answers, and the predicted one."""
        rows, scores = self.data.splits[evaluation.split], evaluation.details["scores"].tolist()
        return [
            (
                row.name,
                next((answer["text"] for answer in row.values["answers"]), ""),
                text,
                f"{f1:.6g}",
                f"{exact:g}",
            )
            for row, text, (exact, f1) in zip(
                rows, evaluation.details["answers"].tolist(), scores, strict=True
            )
        ]

    def card(self) -> str:
        """See `Task.card`."""
        return (
            'from headstart import pipeline\n\nanswer = pipeline("question-answering", "FOLDER")\n'
            'print(answer(question="Who was there?", context="Ann was there."))\n'
        )


def token_span(offsets: list[tuple[int, int]], answer: dict[str, Any]) -> tuple[int, int]:
    """First and last token of an answer, (0, 0) where it is not wholly inside the window."""
    first, last = answer["start"], answer["start"] + len(answer["text"])
    inside = [i for i, (a, b) in enumerate(offsets) if a >= 0 and a < last and b > first]
    if not inside or offsets[inside[0]][0] > first or offsets[inside[-1]][1] < last:
        return (0, 0)
    return inside[0], inside[-1]


def best_span(
    start: NDArray[np.float32], end: NDArray[np.float32], offsets: NDArray[np.int64]
) -> tuple[float, int, int] | None:
    """Score, first character and the one after the last of the best span of the context's
    tokens.
    """
    context = np.flatnonzero(offsets[:, 0] >= 0)
    if not len(context):
        return None
    scores = start[context, None] + end[None, context]  # (context, context)
    length = np.arange(len(context))[None, :] - np.arange(len(context))[:, None]
    scores = np.where((length >= 0) & (length < LONGEST_ANSWER), scores, -np.inf)
    first, last = np.unravel_index(int(scores.argmax()), scores.shape)
    return (
        float(scores[first, last]),
        int(offsets[context[first], 0]),
        int(offsets[context[last], 1]),
    )
