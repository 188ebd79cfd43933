"""Text models as plain functions: classes, hidden words, tagged words and answers, as users of
other libraries know them.

Letters: B texts, L tokens, V classes or tokens of the vocabulary.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from headstart.errors import InputError
from headstart.pipelines.base import ShortRepr, batched, load_both
from headstart.pipelines.confidence import UNKNOWN, believed

logger = logging.getLogger("headstart")
_UNSET: Any = object()


class TextPipeline(ShortRepr):
    """Base of the pipelines of texts: network, tokenizer, and batches of texts.

    Args:
        model: A folder, a Hub id, an authors' name, or a model object.
        tokenizer: Tokenizer for a model object; default the one beside the model.
        device: Where to compute.
        batch_size: Texts that go through the network together.
        truncation: Cut texts that are longer than the network can read.
        extend_positions: Let the network read longer texts than it was made for
            (`YosoModel.read_long_texts`).
        model_kwargs: Values of the configuration to load the model with, such as
            {"use_expectation": False, "num_hash": 32}.
    """

    task: ClassVar[str]
    auto_class: ClassVar[str]
    # What truncates, and what extends the network, in the words of the interface in use.
    ways_out: tuple[str, str] = ("truncation=True", "extend_positions=True")

    def __init__(
        self,
        model: Any,
        *,
        tokenizer: Any = None,
        device: Any = None,
        batch_size: int = 8,
        truncation: bool = False,
        extend_positions: bool = False,
        model_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        self.model_kwargs = dict(model_kwargs or {})
        self.model, self.tokenizer = load_both(
            model,
            self.auto_class,
            tokenizer,
            device,
            tokenizer=True,
            model_kwargs=self.model_kwargs,
        )
        self.batch_size, self.truncation, self.extend_positions = (
            batch_size,
            truncation,
            extend_positions,
        )

    @property
    def longest(self) -> int:
        """Tokens that the network can read."""
        return int(self.model.config.max_position_embeddings)

    def encode(self, texts: list[Any], names: list[str] | None = None) -> Any:
        """A batch of texts or of pairs, padded, as tensors; long ones are cut, make the network
        longer, or are refused.

        Raises:
            InputError: A text is longer than the network can read.
        """
        if len({isinstance(text, tuple) for text in texts}) > 1:
            raise InputError("single texts and pairs together; give one kind at a time")
        pairs = [text[1] for text in texts] if isinstance(texts[0], tuple) else None
        firsts = [text[0] for text in texts] if pairs is not None else texts
        limit = {"truncation": True, "max_length": self.longest} if self.truncation else {}
        batch = self.tokenizer(firsts, pairs, padding=True, return_offsets_mapping=True, **limit)
        length = len(batch["input_ids"][0])
        if length > self.longest:
            self._grow(length, names or [f"text {i + 1}" for i in range(len(texts))], batch)
        for key in ("input_ids", "attention_mask"):
            batch[key] = torch.tensor(batch[key], device=self.model.device)  # (B, L)
        return batch

    def _grow(self, length: int, names: list[str], batch: Any) -> None:
        if not self.extend_positions or not hasattr(self.model, "read_long_texts"):
            which = int(np.argmax([sum(mask) for mask in batch["attention_mask"]]))
            cut, extend = self.ways_out
            more = f", or {extend} reads it whole" if hasattr(self.model, "read_long_texts") else ""
            raise InputError(
                f"{names[which]} has {length} tokens and the network reads {self.longest};"
                f" {cut} truncates it{more}"
            )
        samples = "use_expectation" not in self.model_kwargs
        logger.info(
            "%d tokens: positions are repeated%s",
            length,
            ", attention is sampled" if samples else "",
        )
        self.model.read_long_texts(length, sample=samples)

    def run(self, batch: Any, **more: Any) -> Any:
        """The network's output for an encoded batch."""
        with torch.inference_mode():
            return self.model(
                input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], **more
            )


class TextClassificationPipeline(TextPipeline):
    """Classifies texts, or pairs of texts, with probabilities.

    Args:
        model: A folder, a Hub id, an authors' name, or a model object.
        top_k: Labels of each text where a call gives no `top_k`; None for all.
        return_all_scores: Older form: True is `top_k=None`, False is `top_k=1`.
        refuse: Whether to answer "I don't know" below the confidence that training found for its
            target error rate; a number is another rate, such as 0.01.
        **options: Arguments of `TextPipeline`.

    Probabilities are those after the temperature scaling that training found to help, if any.
    """

    task: ClassVar[str] = "text-classification"
    auto_class: ClassVar[str] = "AutoModelForSequenceClassification"

    def __init__(
        self,
        model: Any,
        *,
        top_k: int | None = _UNSET,
        return_all_scores: bool | None = None,
        refuse: bool | float = False,
        **options: Any,
    ) -> None:
        self.temperature, self.threshold = believed(model, refuse)
        super().__init__(model, **options)
        if return_all_scores is not None and top_k is _UNSET:
            top_k = None if return_all_scores else _UNSET
        self.top_k = top_k

    def __call__(
        self, inputs: Any, top_k: int | None = _UNSET, function_to_apply: str | None = None
    ) -> Any:
        """Labels and scores, best first.

        Args:
            inputs: A text, a dict of `text` and `text_pair`, or a list of them.
            top_k: Labels of each text, None for all. Left out, a list of texts gives one label
                each, without a list around it.
            function_to_apply: "softmax", "sigmoid" or "none"; default what the model was trained
                with.

        Returns:
            A list of `{"label": str, "score": float}` for one text; for many a list of such dicts,
            or of lists where `top_k` is given.
        """
        one = isinstance(inputs, str | Mapping)
        top_k = self.top_k if top_k is _UNSET else top_k
        count = 1 if top_k is _UNSET else top_k
        found = list(self.stream([inputs] if one else inputs, count, function_to_apply))
        if one:
            return found[0]
        return [each[0] for each in found] if top_k is _UNSET else found

    def stream(
        self,
        inputs: Iterable[Any],
        top_k: int | None = 1,
        function_to_apply: str | None = None,
        names: list[str] | None = None,
    ) -> Iterator[list[dict[str, Any]]]:
        """The labels of each text, one text after the other."""
        if top_k is not None and top_k < 1:
            raise InputError(f"top_k={top_k}; at least one label has to be given")
        labels, done = self.model.config.id2label, 0
        for some in batched(inputs, self.batch_size):
            texts = [_text_or_pair(each) for each in some]
            # (B, V)
            logits = self.run(self.encode(texts, names and names[done:])).logits.float().cpu()
            done += len(some)
            for row in self.scores(logits, function_to_apply):
                best = row.argsort(descending=True, stable=True)[:top_k].tolist()
                if self.threshold and row[best[0]] < self.threshold:
                    yield [{"label": UNKNOWN, "score": float(row[best[0]])}]
                    continue
                yield [{"label": labels[i], "score": float(row[i])} for i in best]

    def scores(self, logits: Tensor, function: str | None = None) -> Tensor:
        """Scores of the classes from logits (B, V)."""
        config = self.model.config
        if function is None:
            several = config.problem_type == "multi_label_classification" or (
                config.num_labels == 1 and config.problem_type is None
            )
            function = "sigmoid" if several else "softmax"
            if config.problem_type == "regression":
                function = "none"
        if function not in ("softmax", "sigmoid", "none"):
            raise InputError(
                f"function_to_apply={function!r}; expected 'softmax', 'sigmoid' or 'none'"
            )
        if function == "softmax":
            return (logits / self.temperature).softmax(-1)
        return logits.sigmoid() if function == "sigmoid" else logits


class FillMaskPipeline(TextPipeline):
    """Guesses the tokens behind `<mask>`."""

    task: ClassVar[str] = "fill-mask"
    auto_class: ClassVar[str] = "AutoModelForMaskedLM"

    def __call__(self, inputs: Any, top_k: int = 5, targets: str | list[str] | None = None) -> Any:
        """Guesses, best first.

        Args:
            inputs: A text with at least one `<mask>`, or a list of texts.
            top_k: Guesses for each mask.
            targets: Choose among these words only; one that is several tokens counts as its first.

        Returns:
            For each mask a list of `{"score", "token", "token_str", "sequence"}`; for a text with
            several masks a list of these lists, and for a list of texts a list again.

        Raises:
            InputError: A text without a mask.
        """
        one = isinstance(inputs, str)
        found = list(self.stream([inputs] if one else inputs, top_k, targets))
        return found[0] if one else found

    def stream(
        self,
        inputs: Iterable[str],
        top_k: int = 5,
        targets: str | list[str] | None = None,
        names: list[str] | None = None,
    ) -> Iterator[Any]:
        """The guesses of each text, one text after the other."""
        among = None if targets is None else self._target_ids(targets)
        done = 0
        for some in batched(inputs, self.batch_size):
            batch = self.encode(some, names and names[done:])
            hidden = batch["input_ids"] == self.tokenizer.mask_token_id  # (B, L)
            for i, count in enumerate(hidden.sum(1).tolist()):
                if not count:
                    name = names[done + i] if names else f"text {done + i + 1}"
                    raise InputError(
                        f"{name} has no {self.tokenizer.mask_token}: write it in place of the word"
                        " to be guessed"
                    )
            # (masks, V)
            scores = self.run(batch, logits_at=hidden).logits.float().cpu().softmax(-1)
            rows = iter(scores)
            for ids, at in zip(batch["input_ids"].cpu(), hidden.cpu(), strict=True):
                positions = at.nonzero()[:, 0].tolist()
                found = [
                    self._guesses(next(rows), ids, position, top_k, among, len(positions) == 1)
                    for position in positions
                ]
                yield found[0] if len(found) == 1 else found
            done += len(some)

    def _target_ids(self, targets: str | list[str]) -> Tensor:
        words = [targets] if isinstance(targets, str) else targets
        ids = [self.tokenizer(word, add_special_tokens=False)["input_ids"] for word in words]
        if not ids or not all(ids):
            raise InputError(f"targets={targets!r}; expected words")
        for word, parts in zip(words, ids, strict=True):
            if len(parts) > 1:
                logger.warning(
                    "%r is %d tokens; %r, the first, is looked for",
                    word,
                    len(parts),
                    self.tokenizer.decode(parts[:1]),
                )
        return torch.tensor(sorted({each[0] for each in ids}))

    def _guesses(
        self,
        scores: Tensor,
        ids: Tensor,
        position: int,
        top_k: int,
        among: Tensor | None,
        only: bool,
    ) -> list[dict[str, Any]]:
        if among is not None:
            scores = torch.zeros_like(scores).index_copy_(0, among, scores[among])
        best = scores.topk(min(top_k, len(scores) if among is None else len(among)))
        pad, found = self.tokenizer.pad_token_id, []
        for score, token in zip(best.values.tolist(), best.indices.tolist(), strict=True):
            filled = [
                token if i == position else each
                for i, each in enumerate(ids.tolist())
                if each != pad
            ]
            text = self.tokenizer.decode(filled, skip_special_tokens=only)
            found.append(
                {
                    "score": score,
                    "token": token,
                    "token_str": self.tokenizer.decode([token]),
                    "sequence": text,
                }
            )
        return found


Aggregation = Literal["none", "simple", "first", "average", "max"]


class TokenClassificationPipeline(TextPipeline):
    """Tags the tokens of texts, and puts them together to entities."""

    task: ClassVar[str] = "token-classification"
    auto_class: ClassVar[str] = "AutoModelForTokenClassification"

    def __init__(
        self,
        model: Any,
        *,
        aggregation_strategy: Aggregation = "none",
        ignore_labels: Iterable[str] = ("O",),
        **options: Any,
    ) -> None:
        super().__init__(model, **options)
        self.aggregation_strategy, self.ignore_labels = aggregation_strategy, tuple(ignore_labels)

    def __call__(self, inputs: Any, aggregation_strategy: Aggregation | None = None) -> Any:
        """Tags and where they are.

        Args:
            inputs: A text, or a list of texts.
            aggregation_strategy: "none" gives every token with its tag. The others join tokens to
                entities: "simple" by tags alone; "first", "average" and "max" give each word one
                    tag: of its first token, the mean scores, or the highest score. A comma
                is a word of its own, as in the texts that taggers learn from (transformers counts
                it to the word before).

        Returns:
            For a text a list of `{"entity", "score", "index", "word", "start", "end"}`, or of
            `{"entity_group", "score", "word", "start", "end"}`; for many texts a list of such
            lists. `start` and `end` count characters.
        """
        one = isinstance(inputs, str)
        found = list(self.stream([inputs] if one else inputs, aggregation_strategy))
        return found[0] if one else found

    def stream(
        self,
        inputs: Iterable[str],
        aggregation_strategy: Aggregation | None = None,
        names: list[str] | None = None,
    ) -> Iterator[list[dict[str, Any]]]:
        """The tags of each text, one text after the other."""
        how = aggregation_strategy or self.aggregation_strategy
        if how not in ("none", "simple", "first", "average", "max"):
            raise InputError(
                f"aggregation_strategy={how!r}; expected 'none', 'simple', 'first', 'average' or"
                " 'max'"
            )
        done = 0
        for some in batched(inputs, self.batch_size):
            batch = self.encode(some, names and names[done:])
            scores = self.run(batch).logits.float().softmax(-1).cpu().numpy()  # (B, L, V)
            done += len(some)
            for i, text in enumerate(some):
                tokens = self._tokens(batch, i, scores[i])
                if how == "none":
                    yield [
                        self._entity(token)
                        for token in tokens
                        if self._label(token["scores"]) not in self.ignore_labels
                    ]
                else:
                    parts = (
                        tokens
                        if how == "simple"
                        else [_word(group, how) for group in _by_word(tokens)]
                    )
                    yield self._groups(parts, text)

    def _tokens(self, batch: Any, i: int, scores: Any) -> list[dict[str, Any]]:
        """The tokens of a text that are not special."""
        words, names, offsets = batch.word_ids(i), batch.tokens(i), batch["offset_mapping"][i]
        return [
            {
                "index": j,
                "word_id": words[j],
                "word": names[j],
                "start": offsets[j][0],
                "end": offsets[j][1],
                "scores": scores[j],
            }
            for j in range(len(offsets))
            if words[j] is not None
        ]

    def _label(self, scores: Any) -> str:
        return str(self.model.config.id2label[int(scores.argmax())])

    def _entity(self, token: dict[str, Any]) -> dict[str, Any]:
        found = {"entity": self._label(token["scores"]), "score": float(token["scores"].max())}
        return found | {key: token[key] for key in ("index", "word", "start", "end")}

    def _groups(self, parts: list[dict[str, Any]], text: str) -> list[dict[str, Any]]:
        """Neighbours of one kind, unless a B- tag begins another entity."""
        groups: list[tuple[str, list[dict[str, Any]]]] = []
        for part in parts:
            label = self._label(part["scores"])
            begins, kind = label.startswith("B-"), label[2:] if label[:2] in ("B-", "I-") else label
            if groups and groups[-1][0] == kind and not begins:
                groups[-1][1].append(part)
            else:
                groups.append((kind, [part]))
        found = []
        for kind, members in groups:
            if kind not in self.ignore_labels:
                start, end = members[0]["start"], members[-1]["end"]
                score = float(np.mean([each["scores"].max() for each in members]))
                found.append(
                    {
                        "entity_group": kind,
                        "score": score,
                        "word": text[start:end],
                        "start": start,
                        "end": end,
                    }
                )
        return found


def _by_word(tokens: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Tokens of one word together."""
    words: list[list[dict[str, Any]]] = []
    for token in tokens:
        if words and words[-1][-1]["word_id"] == token["word_id"]:
            words[-1].append(token)
        else:
            words.append([token])
    return words


def _word(tokens: list[dict[str, Any]], how: str) -> dict[str, Any]:
    """A word as one token."""
    if how == "first":
        scores = tokens[0]["scores"]
    elif how == "max":
        scores = max(tokens, key=lambda token: float(token["scores"].max()))["scores"]
    else:
        scores = np.mean([token["scores"] for token in tokens], axis=0)
    return {"scores": scores, "start": tokens[0]["start"], "end": tokens[-1]["end"]}


class QuestionAnsweringPipeline(TextPipeline):
    """Finds the answer to a question in a context."""

    task: ClassVar[str] = "question-answering"
    auto_class: ClassVar[str] = "AutoModelForQuestionAnswering"

    def __call__(
        self,
        inputs: Any = None,
        *,
        question: Any = None,
        context: Any = None,
        top_k: int = 1,
        max_answer_len: int = 15,
        max_seq_len: int | None = None,
        doc_stride: int | None = None,
        handle_impossible_answer: bool = False,
    ) -> Any:
        """Answers, best first.

        Args:
            inputs: A dict of `question` and `context`, or a list of them, in place of the two.
            question: A question, or a list.
            context: Its context; one may serve many questions.
            top_k: Answers to each question.
            max_answer_len: Tokens of the longest answer.
            max_seq_len: Tokens of a window; longer contexts are read in windows. Default what the
                network can read.
            doc_stride: Tokens that windows share; default an eighth of a window, at most 128.
            handle_impossible_answer: Whether "" may be an answer.

        Returns:
            `{"score", "start", "end", "answer"}`, a list of these where `top_k` is more than 1, and
            a list again for many questions. The score of an answer is the sum over the best spans
            of tokens that lie in its words.
        """
        questions, one = _questions(inputs, question, context)
        found = []
        for each in questions:
            spans = self._spans(
                each["question"],
                each["context"],
                max_seq_len,
                doc_stride,
                max_answer_len,
                handle_impossible_answer,
                top_k,
            )
            found.append(spans[0] if top_k == 1 else spans)
        return found[0] if one else found

    def _spans(
        self,
        question: str,
        context: str,
        size: int | None,
        stride: int | None,
        longest: int,
        none_allowed: bool,
        top_k: int,
    ) -> list[dict[str, Any]]:
        """The best answers to one question over all windows of its context."""
        size = min(size or self.tokenizer.model_max_length, self.longest)
        if self.extend_positions and size == self.longest:
            size = max(size, len(self.tokenizer(question, context)["input_ids"]))
            if size > self.longest:
                self._grow(size, [], None)
        windows = self.tokenizer(
            [question],
            [context],
            truncation="only_second",
            max_length=size,
            stride=min(128, size // 8) if stride is None else stride,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
            padding=True,
        )
        found: dict[str, dict[str, Any]] = {}
        nothing = 1.0
        for part in range(len(windows["input_ids"])):
            batch = {
                key: torch.tensor([windows[key][part]], device=self.model.device)
                for key in ("input_ids", "attention_mask")
            }
            out = self.run(batch)
            inside = np.array([each == 1 for each in windows.sequence_ids(part)])  # (L,)
            seen = inside.copy()
            seen[0] = True  # the first token stands for "no answer"
            start, end = (
                _softmax_at(x[0].float().cpu().numpy(), seen)
                for x in (out.start_logits, out.end_logits)
            )  # (L,) each
            nothing = min(nothing, float(start[0] * end[0]))
            start[~inside] = end[~inside] = 0.0
            # spans inside the same words are one answer
            for first, last, score in best_spans(start, end, longest, 2 * top_k + 10):
                a, b = _whole_words(windows, part, first, last)
                same = found.setdefault(
                    context[a:b].lower(),
                    {"score": 0.0, "start": a, "end": b, "answer": context[a:b]},
                )
                same["score"] += score
        answers = list(found.values())
        if none_allowed:
            answers.append({"score": nothing, "start": 0, "end": 0, "answer": ""})
        return sorted(answers, key=lambda each: -each["score"])[:top_k]


def _softmax_at(logits: Any, seen: Any) -> Any:
    """Softmax over the positions that are seen, 0 elsewhere."""
    if not seen.any():
        return np.zeros_like(logits)
    powers = np.where(seen, np.exp(logits - logits[seen].max()), 0.0)
    return powers / powers.sum()


def best_spans(start: Any, end: Any, longest: int, top_k: int) -> list[tuple[int, int, float]]:
    """First and last token of the best spans, and their scores.

    Needs memory for `longest` numbers a token.
    """
    L = len(start)
    ends = np.stack(
        [
            np.concatenate([end[i:], np.zeros(min(i, L), end.dtype)])[:L]
            for i in range(min(longest, L))
        ]
    )  # (longest, L)
    scores = start * ends  # (longest, L): length minus one, first token
    best = np.argsort(-scores, axis=None, kind="stable")[:top_k]
    spans = [(int(i % L), int(i % L + i // L), float(scores.flat[i])) for i in best]
    return [span for span in spans if span[2] > 0.0] or spans[:1]


def _whole_words(windows: Any, part: int, first: int, last: int) -> tuple[int, int]:
    """Characters of a span of tokens, made longer to whole words."""
    ends = []
    for token, side in ((first, 0), (last, 1)):
        word = windows.token_to_word(part, token)
        whole = None if word is None else windows.word_to_chars(part, word, 1)
        ends.append((windows["offset_mapping"][part][token] if whole is None else whole)[side])
    return ends[0], ends[1]


def _questions(inputs: Any, question: Any, context: Any) -> tuple[list[Mapping[str, str]], bool]:
    """Questions with their contexts, and whether it was one."""
    if inputs is None:
        if question is None or context is None:
            raise InputError("give question= and context=")
        many = [question] if isinstance(question, str) else list(question)
        contexts = [context] * len(many) if isinstance(context, str) else list(context)
        if len(contexts) != len(many):
            raise InputError(
                f"{len(many)} questions and {len(contexts)} contexts; give one for each, or one"
                " for all"
            )
        return [
            {"question": q, "context": c} for q, c in zip(many, contexts, strict=True)
        ], isinstance(question, str)
    questions = [inputs] if isinstance(inputs, Mapping) else list(inputs)
    for each in questions:
        if not isinstance(each, Mapping) or not {"question", "context"} <= set(each):
            raise InputError(
                f"{each!r} is not a question; expected a dict with question and context"
            )
    return questions, isinstance(inputs, Mapping)


def _text_or_pair(value: Any) -> Any:
    if isinstance(value, Mapping):
        if "text" not in value:
            raise InputError(
                f"{dict(value)!r} has no text; expected text and, for pairs, text_pair"
            )
        return (
            (value["text"], value["text_pair"])
            if value.get("text_pair") is not None
            else value["text"]
        )
    return value
