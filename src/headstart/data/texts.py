"""Labelled texts: tables, CoNLL, SQuAD and plain text files become splits of rows that know where
they came from.

What a row holds is its task's affair: a task gives the function that reads one file, this module
finds files and makes splits.
"""

import csv
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from headstart.checkpoint.documents import read_json, read_text
from headstart.data.cache import Bad
from headstart.data.interpret import LABEL_COLUMNS, SCORE_COLUMNS
from headstart.data.labels import few_shot, stratified
from headstart.data.options import DataOptions
from headstart.data.sources.hub import as_json_lines
from headstart.data.sources.raw import SPLIT_NAMES
from headstart.data.sources.tables import TABLE_SUFFIXES, Table, read_table
from headstart.errors import ConfigError, DataError, listed

TEXT_SUFFIXES = (*TABLE_SUFFIXES, ".conll", ".conllu", ".iob", ".txt")
TEXT_COLUMNS = (
    "text",
    "sentence",
    "review",
    "document",
    "content",
    "comment",
    "tweet",
    "question",
    "source",
    "tokens",
)
# First and second texts that belong together.
PAIR_COLUMNS = (
    ("sentence1", "sentence2"), ("premise", "hypothesis"), ("question1", "question2"), ("question", "sentence"), ("question", "passage"),
    ("query", "passage"), ("#1 string", "#2 string"), ("text", "text_pair"), ("text_a", "text_b"), ("text1", "text2"),
)  # fmt: skip
CLASS_COLUMNS = (*LABEL_COLUMNS, "gold_label", "quality", "sentiment", "is_duplicate")
EMPTY = "no text"


@dataclass
class Row:
    """One example: its values by role, and how it is named to the user (file and line)."""

    values: dict[str, Any]
    name: str


Reader = Callable[[Path, DataOptions], Iterator[Row | Bad]]


@dataclass
class TextData:
    """Rows by split, what cannot be used, and what the user should know."""

    splits: dict[str, list[Row]]
    bad: list[Bad] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def fingerprint(self) -> str:
        """Hash of every row and its split; the order of rows does not matter."""
        whole = hashlib.sha256()
        for split in sorted(self.splits):
            for text in sorted(
                json.dumps(row.values, sort_keys=True, ensure_ascii=False)
                for row in self.splits[split]
            ):
                whole.update(f"{split}:{text};".encode())
        return whole.hexdigest()


def read_texts(
    path: str | Path, options: DataOptions, reader: Reader, suffixes: Sequence[str] = TEXT_SUFFIXES
) -> TextData:
    """Reads a data set of texts.

    Args:
        path: A file, or a folder whose files are named after their splits: train.csv,
            squad_dev.json, …; or a data set of the Hub, as `hf:owner/name`, or one that the
            `datasets` library saved.
        options: Columns, split, shots and seed. `options.extra["validation"]` and `["test"]` may
            name further files.
        reader: Reads one file.
        suffixes: Endings of files in a folder that are data.

    Raises:
        DataError: No data, or rows that cannot be used (unless `options.skip_bad`).
    """
    notes: list[str] = []
    path = as_json_lines(Path(path), notes) or Path(path)
    found: dict[str, list[Row | Bad]] = {}
    for split, file in _files(path, suffixes).items():
        for row in reader(file, options):
            own = row.values.pop("split", None) if isinstance(row, Row) else None
            found.setdefault(split if own is None else _split_of(str(own), row.name), []).append(
                row
            )
    for split in ("validation", "test"):
        if options.extra.get(split):
            found[split] = [
                row
                for file in _files(Path(options.extra[split]), suffixes).values()
                for row in reader(file, options)
            ]
    data = TextData(
        {split: [row for row in rows if isinstance(row, Row)] for split, rows in found.items()},
        notes=notes,
    )
    data.bad = [row for rows in found.values() for row in rows if isinstance(row, Bad)]
    total = sum(map(len, found.values()))
    if data.bad and not options.skip_bad:
        lines = listed((f"{each.name}: {each.reason}" for each in data.bad), 20, "\n  ")
        raise DataError(
            f"{len(data.bad)} of {total} rows cannot be used (mend them, or leave them out with"
            f" --skip-bad):\n  {lines}"
        )
    if data.bad:
        data.notes.append(f"{len(data.bad)} unusable rows left out")
    if not data.splits.get("train"):
        raise DataError(f"{path} has no usable training rows")
    return data


def _files(path: Path, suffixes: Sequence[str]) -> dict[str, Path]:
    """Split → file."""
    if not path.exists():
        raise DataError(f"there is no file or folder {path}")
    if path.is_file():
        return {"train": path}
    found: dict[str, Path] = {}
    for file in sorted(path.iterdir()):
        split = next(
            (
                SPLIT_NAMES[word]
                for word in re.split(r"[._-]", file.name.lower())
                if word in SPLIT_NAMES
            ),
            None,
        )
        if not file.is_file() or file.suffix.lower() not in suffixes or split is None:
            continue
        if split in found:
            raise DataError(
                f"both {found[split]} and {file} look like the {split} data; keep one, or name the"
                " file itself"
            )
        found[split] = file
    if "train" not in found:
        raise DataError(
            f"{path} holds no training data; expected a file such as train.csv, train.jsonl or"
            " train.txt"
        )
    return found


def _split_of(word: str, name: str) -> str:
    if word.strip().lower() not in SPLIT_NAMES:
        raise DataError(f"{name}: split is {word!r}; expected train, validation or test")
    return SPLIT_NAMES[word.strip().lower()]


def hold_out(data: TextData, options: DataOptions, labels: Sequence[int] | None = None) -> None:
    """Holds validation data out where there is none, then takes the shots.

    Args:
        data: Changed in place.
        options: Seed, share and shots.
        labels: Class of each training row, where rows have one: then every class is held out in
            proportion.
    """
    rows = data.splits["train"]
    classes = np.asarray(labels if labels is not None else np.zeros(len(rows)), dtype=np.int64)
    kept = np.arange(len(rows))
    if "validation" not in data.splits and "test" not in data.splits and options.val_fraction > 0:
        out = stratified(
            classes, options.val_fraction, np.random.default_rng([options.seed, 0x5B117])
        )
        if out.any():
            data.splits["validation"] = [row for row, held in zip(rows, out, strict=True) if held]
            data.notes.append(
                f"no validation data: {out.sum()} of {len(out)} rows held out (seed {options.seed})"
            )
            kept = np.flatnonzero(~out)
        else:
            data.notes.append("too few rows to hold any out: the result will not be judged")
    if options.shots is not None:
        if labels is None:
            raise ConfigError(
                f"shots={options.shots} are examples of each class, and these rows have no classes;"
                " leave it out"
            )
        kept = kept[few_shot(classes[kept], options.shots, options.shot_generator())]
    data.splits["train"] = [rows[i] for i in kept]


# Tables -------------------------------------------------------------------------------------------


def table_of(path: Path, options: DataOptions) -> Table:
    """A table.

    Where every column is asked for by number ("1" is the first), the file has no line of names.
    """
    if (
        not options.columns
        or not all(name.isdigit() for name in options.columns.values())
        or path.suffix.lower() not in (".tsv", ".csv")
    ):
        return read_table(path)
    tabs = path.suffix.lower() == ".tsv"
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = (
            csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
            if tabs
            else csv.reader(file, strict=True)
        )
        lines = [(reader.line_num, values) for values in reader if values]
    if not lines:
        raise DataError(f"{path} has no rows")
    names = [str(i) for i in range(1, len(lines[0][1]) + 1)]
    for place, values in lines:
        if len(values) != len(names):
            raise DataError(f"{path} line {place}: {len(values)} values for {len(names)} columns")
    return Table(
        path,
        names,
        [dict(zip(names, values, strict=True)) for _, values in lines],
        "line",
        [place for place, _ in lines],
    )


def find_column(table: Table, names: Sequence[str]) -> str | None:
    """The first column of these names, letter case aside."""
    by_lower = {column.strip().lower(): column for column in reversed(table.columns)}
    return next((by_lower[name] for name in names if name in by_lower), None)


def text_columns(table: Table, options: DataOptions) -> tuple[str, str | None]:
    """The columns of the text and, where rows are pairs, of the second text."""
    asked = options.columns
    if "text" in asked or "pair" in asked:
        return table.column("text", asked.get("text"), TEXT_COLUMNS), (
            table.column("pair", asked["pair"], ()) if "pair" in asked else None
        )
    for first, second in PAIR_COLUMNS:
        a, b = find_column(table, (first,)), find_column(table, (second,))
        if a and b:
            return a, b
    return table.column("text", None, TEXT_COLUMNS), None


def split_column(table: Table, options: DataOptions) -> str | None:
    """The column that says which split a row is of."""
    asked = options.columns.get("split")
    return table.column("split", asked, ()) if asked else find_column(table, ("split",))


def text_cell(row: dict[str, Any], column: str, bad: list[str], *, empty: bool = False) -> str:
    """A text of a row; what is wrong with it is added to `bad`."""
    value = row.get(column)
    if not isinstance(value, str):
        bad.append(f"{column} is {value!r}; expected a text")
        return ""
    if not value.strip() and not empty:
        bad.append(f"{column} holds {EMPTY}")
    return value


def read_labelled(path: Path, options: DataOptions) -> Iterator[Row | Bad]:
    """Rows of a text-classification table: text, pair, label (as it was written), split."""
    table = table_of(path, options)
    first, second = text_columns(table, options)
    asked = next(
        (options.columns[role] for role in ("label", "labels", "score") if role in options.columns),
        None,
    )
    label = asked or find_column(
        table, (*(c for c in CLASS_COLUMNS if c not in (first.lower(), second)), *SCORE_COLUMNS)
    )
    label = table.column("label", label, ())
    split = split_column(table, options)
    for i, row in enumerate(table.rows):
        bad: list[str] = []
        values: dict[str, Any] = {"text": text_cell(row, first, bad), "label": row.get(label)}
        if second:
            values["pair"] = text_cell(row, second, bad)
        if values["label"] is None or values["label"] == "":
            bad.append(f"{label} is empty")
        if split:
            values["split"] = row.get(split)
        yield (
            Bad("train", i, table.where(i), "; ".join(bad)) if bad else Row(values, table.where(i))
        )


def read_choices(path: Path, options: DataOptions) -> Iterator[Row | Bad]:
    """Rows of a multiple-choice table: text, choices, label (number of the right one).

    SWAG's columns (`sent1`, `sent2`, `ending0`, …), `question` or `prompt` with `choice0`, … or a
    list `choices`; the label is a number from 0, or a letter.
    """
    table = table_of(path, options)
    prompt = options.columns.get("text") or find_column(
        table, ("sent1", "prompt", "question", "context", "startphrase", "text")
    )
    prompt = table.column("text", prompt, ())
    lead = find_column(table, ("sent2",)) if prompt.lower() == "sent1" else None
    listed = options.columns.get("choices") or find_column(table, ("choices", "options", "endings"))
    numbered = sorted(
        (
            c
            for c in table.columns
            if re.fullmatch(r"(ending|choice|option|answer)_?\d+", c.lower())
        ),
        key=_number,
    )
    if not listed and len(numbered) < 2:
        raise DataError(
            f"{path}: where are the choices? Columns are {', '.join(table.columns)}; expected"
            " choice0, choice1, … or choices"
        )
    label = table.column(
        "label",
        options.columns.get("label"),
        ("label", "answer", "answer_index", "gold", "correct", "target"),
    )
    split = split_column(table, options)
    for i, row in enumerate(table.rows):
        bad: list[str] = []
        found = row.get(listed) if listed else [row.get(c) for c in numbered]
        if (
            not isinstance(found, list)
            or len(found) < 2
            or not all(isinstance(each, str) for each in found)
        ):
            bad.append(f"the choices are {found!r}; expected a list of at least two texts")
            found = []
        starts = text_cell(row, lead, bad, empty=True) if lead else ""
        values = {
            "text": text_cell(row, prompt, bad),
            "choices": [f"{starts} {each}".strip() for each in found],
            "label": _choice_index(row.get(label), len(found), bad),
        }
        if split:
            values["split"] = row.get(split)
        yield (
            Bad("train", i, table.where(i), "; ".join(bad)) if bad else Row(values, table.where(i))
        )


def _number(name: str) -> int:
    return int(re.sub(r"\D", "", name))


def _choice_index(value: Any, count: int, bad: list[str]) -> int:  # noqa: ANN401 - what a table holds
    text = str(value).strip()
    index = (
        int(text) if text.isdigit() else "ABCDEFGHIJ".find(text.upper()) if len(text) == 1 else -1
    )
    if not 0 <= index < max(1, count):
        bad.append(
            f"the label is {value!r}; expected the number of a choice, from 0 to {count - 1}, or a"
            " letter"
        )
    return index


def read_plain(path: Path, options: DataOptions) -> Iterator[Row | Bad]:
    """Rows of texts without labels.

    Each line of a text file that is not empty, or a column of a table.
    """
    if path.suffix.lower() == ".txt":
        for i, line in enumerate(read_lines(path), start=1):
            if line.strip():
                yield Row({"text": line}, f"{path} line {i}")
        return
    table = table_of(path, options)
    column = table.column("text", options.columns.get("text"), TEXT_COLUMNS)
    for i, row in enumerate(table.rows):
        bad: list[str] = []
        values = {"text": text_cell(row, column, bad)}
        yield (
            Bad("train", i, table.where(i), "; ".join(bad)) if bad else Row(values, table.where(i))
        )


# Words and questions ------------------------------------------------------------------------------


def read_lines(path: Path) -> list[str]:
    """The lines of a text file."""
    return read_text(path, error=DataError).split("\n")


def read_tagged(path: Path, options: DataOptions) -> Iterator[Row | Bad]:
    """Rows of words with tags: CoNLL files (a word a line, an empty line between texts), CoNLL-U,
    or tables of lists.

    In a CoNLL file the word is the first column and the tag the last one; CoNLL-U's lines begin
    with a number, and the tag is UPOS (the fourth column). `options.columns` may give other ones by
    number from 1.
    """
    if path.suffix.lower() in (".jsonl", ".json", ".parquet"):
        table = read_table(path)
        words = table.column("words", options.columns.get("words"), ("tokens", "words"))
        tags = table.column(
            "tags",
            options.columns.get("tags"),
            ("tags", "ner_tags", "pos_tags", "labels", "ner", "upos"),
        )
        for i, row in enumerate(table.rows):
            yield _tagged(row.get(words), row.get(tags), table.where(i), i)
        return
    block: list[tuple[int, list[str]]] = []
    for number, line in enumerate([*read_lines(path), ""], start=1):
        line = line.rstrip("\r")
        if not line.strip() or line.startswith("-DOCSTART-"):
            if block:
                yield _block(block, path, options)
            block = []
        elif not re.match(r"#( \w+ =|$| newdoc| newpar)", line):
            block.append((number, re.split(r"\t" if "\t" in line else r" +", line)))


def _block(block: list[tuple[int, list[str]]], path: Path, options: DataOptions) -> Row | Bad:
    numbered = block[0][1][0].split("-")[0] == "1" and len(block[0][1]) >= 4
    word = int(options.columns.get("words", 2 if numbered else 1)) - 1
    tag = int(options.columns["tags"]) - 1 if "tags" in options.columns else 3 if numbered else -1
    place = f"{path} line {block[0][0]}"
    if numbered:  # lines 3-4 and 5.1 of CoNLL-U are contractions and words that are not written
        block = [each for each in block if each[1][0].isdigit()]
    for number, cells in block:
        if len(cells) <= max(word, tag, 1):
            return Bad(
                "train",
                0,
                f"{path} line {number}",
                f"{len(cells)} columns; expected a word and a tag",
            )
    return _tagged(
        [cells[word] for _, cells in block], [cells[tag] for _, cells in block], place, 0
    )


def _tagged(words: Any, tags: Any, name: str, index: int) -> Row | Bad:  # noqa: ANN401 - what a table holds
    if (
        not isinstance(words, list)
        or not isinstance(tags, list)
        or not words
        or not all(isinstance(w, str) and w.strip() for w in words)
    ):
        return Bad("train", index, name, "expected a list of words and a list of tags")
    if len(words) != len(tags):
        return Bad("train", index, name, f"{len(words)} words and {len(tags)} tags")
    return Row({"words": words, "tags": [str(tag) for tag in tags]}, name)


def read_questions(path: Path, options: DataOptions) -> Iterator[Row | Bad]:
    """Rows of questions: id, question, context, answers (text and first character; none where the
    context has no answer).

    SQuAD's files of either version, or tables of `question`, `context` and `answers` ({"text": […],
    "answer_start": […]}).
    """
    if path.suffix.lower() == ".json":
        values = _squad(path)
        if values is not None:
            for a, article in enumerate(values):
                for p, paragraph in enumerate(article.get("paragraphs", [])):
                    for q, entry in enumerate(paragraph.get("qas", [])):
                        name = (
                            f"{path}"
                            f" {entry.get('id') or f'article {a + 1}, paragraph {p + 1}, question {q + 1}'}"
                        )
                        yield _question(
                            entry, paragraph.get("context"), entry.get("answers"), name, q
                        )
            return
    table = read_table(path)
    for i, row in enumerate(table.rows):
        answers = row.get(options.columns.get("answers", "answers"))
        if isinstance(answers, dict):
            starts = zip(answers.get("text", []), answers.get("answer_start", []), strict=False)
            answers = [{"text": text, "answer_start": start} for text, start in starts]
        yield _question(row, row.get("context"), answers, table.where(i), i)


def _squad(path: Path) -> list[dict[str, Any]] | None:
    """The articles of a SQuAD file, or None for a file that is a list of rows."""
    try:
        values = read_json(path, DataError)
    except DataError:
        return None
    return (
        values["data"]
        if isinstance(values, dict) and isinstance(values.get("data"), list)
        else None
    )


def _question(
    entry: dict[str, Any], context: Any, answers: Any, name: str, index: int
) -> Row | Bad:  # noqa: ANN401 - what a file holds
    question = entry.get("question")
    if (
        not isinstance(question, str)
        or not question.strip()
        or not isinstance(context, str)
        or not context.strip()
    ):
        return Bad("train", index, name, "the question or the context is missing")
    if not isinstance(answers, list) or not all(isinstance(each, dict) for each in answers):
        return Bad(
            "train",
            index,
            name,
            f"the answers are {answers!r}; expected a list of text and answer_start",
        )
    found = []
    for each in answers:
        text, start = each.get("text"), each.get("answer_start")
        if not isinstance(text, str) or not isinstance(start, int):
            return Bad("train", index, name, f"the answer {each!r} has no text or no answer_start")
        if context[start : start + len(text)] != text:
            return Bad(
                "train",
                index,
                name,
                f"the answer {text!r} is not at character {start} of its context",
            )
        found.append({"text": text, "start": start})
    return Row(
        {
            "id": str(entry.get("id", index)),
            "question": question.strip(),
            "context": context,
            "answers": found,
        },
        name,
    )
