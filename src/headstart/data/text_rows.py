"""Rows of texts with what a task learns from them: labels, choices, tags, answers.

Each function reads one file or table; what cannot be used is given as `Bad`, with its place.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headstart.checkpoint.documents import read_json, read_text
from headstart.data.cache import Bad
from headstart.data.interpret import LABEL_COLUMNS, SCORE_COLUMNS
from headstart.data.labels import as_list, is_number
from headstart.data.options import DataOptions, refuse_columns
from headstart.data.sources.raw import RawTable, group_column
from headstart.data.sources.tables import read_table
from headstart.errors import DataError

TEXT_COLUMNS = (
    *("text", "sentence", "review", "document", "content", "comment", "tweet", "question"),
    *("source", "tokens"),
)
# First and second texts that belong together.
PAIR_COLUMNS = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("question", "passage"),
    ("query", "passage"),
    ("#1 string", "#2 string"),
    ("text", "text_pair"),
    ("text_a", "text_b"),
    ("text1", "text2"),
)
CLASS_COLUMNS = (*LABEL_COLUMNS, "gold_label", "quality", "sentiment", "is_duplicate")
EMPTY = "no text"
TAG_COLUMNS = ("tags", "ner_tags", "pos_tags", "labels", "ner", "upos")


@dataclass
class Row:
    """One example.

    Args:
        values: Its values by role.
        name: How it is named to the user: file and line.
        group: Rows of one group belong on one side of a split; None is in none.
    """

    values: dict[str, Any]
    name: str
    group: Any = None


Reader = Callable[[Path | RawTable, DataOptions], Iterator[Row | Bad]]


def table_of(source: Path | RawTable, options: DataOptions) -> RawTable:
    """The table of a file.

    Where every column is given by number ("1" is the first), the file has no line of names.
    """
    if isinstance(source, RawTable):
        return source
    numbered = bool(options.columns) and all(map(is_number, options.columns.values()))
    return read_table(source, header=not (numbered and source.suffix.lower() in (".tsv", ".csv")))


def text_columns(table: RawTable, options: DataOptions) -> tuple[str, str | None]:
    """The columns of the text and, where rows are pairs, of the second text."""
    requested = options.columns
    if "text" in requested or "pair" in requested:
        return table.column("text", requested.get("text"), TEXT_COLUMNS), (
            table.column("pair", requested["pair"], ()) if "pair" in requested else None
        )
    for first, second in PAIR_COLUMNS:
        a, b = table.usual_column((first,)), table.usual_column((second,))
        if a and b:
            return a, b
    return table.column("text", None, TEXT_COLUMNS), None


def split_column(table: RawTable, options: DataOptions) -> str | None:
    """The column that holds the split of a row."""
    requested = options.columns.get("split")
    return table.column("split", requested, ()) if requested else table.usual_column(("split",))


def text_cell(row: dict[str, Any], column: str, bad: list[str], *, empty: bool = False) -> str:
    """A text of a row; what is wrong with it is added to `bad`."""
    value = row.get(column)
    if not isinstance(value, str):
        bad.append(f"{column} is {value!r:.200}; expected a text")
        return ""
    if not value.strip() and not empty:
        bad.append(f"{column} holds {EMPTY}")
    return value


def read_labelled(source: Path | RawTable, options: DataOptions) -> Iterator[Row | Bad]:
    """Rows of a text-classification table: text, pair, label (as it was written), split."""
    table = table_of(source, options)
    first, second = text_columns(table, options)
    requested = next(
        (options.columns[role] for role in ("label", "labels", "score") if role in options.columns),
        None,
    )
    label = requested or table.usual_column(
        (*(c for c in CLASS_COLUMNS if c not in (first.lower(), second)), *SCORE_COLUMNS)
    )
    label = table.column("label", label, ())
    split = split_column(table, options)
    group = group_column(table, options.columns.get("group"))
    group = None if group in (first, second, label) else group
    for i, row in enumerate(table.rows):
        bad: list[str] = []
        values: dict[str, Any] = {"text": text_cell(row, first, bad), "label": row.get(label)}
        if second:
            values["pair"] = text_cell(row, second, bad)
        if values["label"] is None or values["label"] == "":
            bad.append(f"{label} is empty")
        if split:
            values["split"] = row.get(split)
        if bad:
            yield Bad("train", i, table.where(i), "; ".join(bad))
            continue
        yield Row(values, table.where(i), row.get(group) if group else None)


def read_choices(source: Path | RawTable, options: DataOptions) -> Iterator[Row | Bad]:
    """Rows of a multiple-choice table: text, choices, label (number of the right one).

    SWAG's columns (`sent1`, `sent2`, `ending0`, …), `question` or `prompt` with `choice0`, … or a
    list `choices`; the label is a number from 0, or a letter.
    """
    table = table_of(source, options)
    prompt = options.columns.get("text") or table.usual_column(
        ("sent1", "prompt", "question", "context", "startphrase", "text")
    )
    prompt = table.column("text", prompt, ())
    lead = table.usual_column(("sent2",)) if prompt.lower() == "sent1" else None
    listed = options.columns.get("choices") or table.usual_column(("choices", "options", "endings"))
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
            f"{table.path}: where are the choices? Columns are {', '.join(table.columns)}; expected"
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
        found = as_list(row.get(listed)) if listed else _filled([row.get(c) for c in numbered])
        texts = [each for each in found or () if isinstance(each, str) and each.strip()]
        if not found or len(texts) < max(2, len(found)):
            cells = row.get(listed) if listed else found
            bad.append(f"the choices are {cells!r:.200}; expected at least two texts, none empty")
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


def _filled(cells: list[Any]) -> list[Any]:
    """The cells up to the last one that is not empty: rows may have fewer choices than columns."""
    while cells and (cells[-1] is None or cells[-1] == ""):
        cells = cells[:-1]
    return cells


def _number(name: str) -> int:
    return int(re.sub(r"\D", "", name))


def _choice_index(value: Any, count: int, bad: list[str]) -> int:
    text = str(value).strip()
    index = "ABCDEFGHIJ".find(text.upper()) if len(text) == 1 else -1
    if is_number(text):
        index = int(text)
    if not 0 <= index < max(1, count):
        bad.append(
            f"the label is {value!r:.80}; expected the number of a choice, from 0 to {count - 1},"
            " or a letter"
        )
    return index


def read_plain(source: Path | RawTable, options: DataOptions) -> Iterator[Row | Bad]:
    """Rows of texts without labels.

    Each line of a text file that is not empty, or a column of a table.
    """
    if isinstance(source, Path) and source.suffix.lower() == ".txt":
        refuse_columns(options.columns, source, "lines of text")
        for i, line in enumerate(read_lines(source), start=1):
            if line.strip():
                yield Row({"text": line}, f"{source} line {i}")
        return
    table = table_of(source, options)
    column = table.column("text", options.columns.get("text"), TEXT_COLUMNS)
    for i, row in enumerate(table.rows):
        bad: list[str] = []
        values = {"text": text_cell(row, column, bad)}
        yield (
            Bad("train", i, table.where(i), "; ".join(bad)) if bad else Row(values, table.where(i))
        )


def read_any_text(source: Path | RawTable, options: DataOptions) -> Iterator[Row | Bad]:
    """Rows of texts without labels, of everything that a text task reads.

    Lines of a text file; words of CoNLL files; both texts of pairs; contexts and questions of
    SQuAD's files.
    """
    if isinstance(source, Path) and source.suffix.lower() in (".conll", ".conllu", ".iob"):
        for tagged in read_tagged(source, options):
            yield tagged if isinstance(tagged, Bad) else _joined(tagged)
        return
    if isinstance(source, Path) and _squad(source) is not None:
        yield from _question_texts(source, options)
        return
    if isinstance(source, Path) and source.suffix.lower() == ".txt":
        yield from read_plain(source, options)
        return
    table = table_of(source, options)
    first, second = text_columns(table, options)
    split = split_column(table, options)
    columns = (first,) if second is None else (first, second)
    for i, row in enumerate(table.rows):
        for column in columns:
            bad: list[str] = []
            values: dict[str, Any] = {"text": text_cell(row, column, bad)}
            if split:
                values["split"] = row.get(split)
            where = table.where(i)
            yield Bad("train", i, where, "; ".join(bad)) if bad else Row(values, where)


def _joined(row: Row) -> Row:
    """The words of a row as one text."""
    return Row({"text": " ".join(row.values["words"])}, row.name)


def _question_texts(source: Path, options: DataOptions) -> Iterator[Row | Bad]:
    """Each context once, and each question."""
    before = None
    for row in read_questions(source, options):
        if isinstance(row, Bad):
            yield row
            continue
        if row.values["context"] != before:
            before = row.values["context"]
            yield Row({"text": before}, row.name)
        yield Row({"text": row.values["question"]}, row.name)


# Words and questions ------------------------------------------------------------------------------


def read_lines(path: Path) -> list[str]:
    """The lines of a text file."""
    return read_text(path, error=DataError).split("\n")


def read_tagged(source: Path | RawTable, options: DataOptions) -> Iterator[Row | Bad]:
    """Rows of words with tags: CoNLL files (a word a line, an empty line between texts), CoNLL-U,
    or tables of lists.

    In a CoNLL file the word is the first column and the tag the last one; CoNLL-U's lines begin
    with a number, and the tag is UPOS (the fourth column). `options.columns` may give other ones by
    number from 1.
    """
    if isinstance(source, RawTable) or source.suffix.lower() in (".jsonl", ".json", ".parquet"):
        table = table_of(source, options)
        words = table.column("words", options.columns.get("words"), ("tokens", "words"))
        tags = table.column("tags", options.columns.get("tags"), TAG_COLUMNS)
        for i, row in enumerate(table.rows):
            yield _tagged(row[words], row[tags], table.where(i), i)
        return
    blocks = list(_blocks(source))
    counted = sum(_is_counted(block) for block in blocks)
    numbered = source.suffix.lower() == ".conllu" or 2 * counted > len(blocks)
    for block in blocks:
        yield _block(block, source, options, numbered)


Block = list[tuple[int, list[str]]]  # line number and cells of each word


def _blocks(path: Path) -> Iterator[Block]:
    """The texts of a CoNLL file."""
    block: Block = []
    for number, line in enumerate([*read_lines(path), ""], start=1):
        line = line.rstrip("\r")
        if not line.strip() or line.startswith("-DOCSTART-"):
            if block:
                yield block
            block = []
        elif not re.match(r"#( \w+ =|$| newdoc| newpar)", line):
            block.append((number, re.split(r"\t" if "\t" in line else r" +", line)))


def _is_counted(block: Block) -> bool:
    """Whether the first column numbers the words from 1, as CoNLL-U's does."""
    numbers = [cells[0] for _, cells in block if is_number(cells[0])]
    counts = numbers == [str(i) for i in range(1, len(numbers) + 1)]
    ids = all(re.fullmatch(r"\d+([-.]\d+)?", cells[0]) for _, cells in block)
    return counts and ids and bool(numbers) and len(block[0][1]) >= 4


def _block(block: Block, path: Path, options: DataOptions, numbered: bool) -> Row | Bad:
    word = _column_number(options, "words", 2 if numbered else 1) - 1
    tag = _column_number(options, "tags", 4 if numbered else 0) - 1
    place = f"{path} line {block[0][0]}"
    if numbered:  # lines 3-4 and 5.1 of CoNLL-U are contractions and words that are not written
        block = [each for each in block if is_number(each[1][0])]
    for number, cells in block:
        if len(cells) <= max(word, tag, 1):
            where = f"{path} line {number}"
            return Bad("train", 0, where, f"{len(cells)} columns; expected a word and a tag")
    words = [cells[word] for _, cells in block]
    return _tagged(words, [cells[tag] for _, cells in block], place, 0)


def _column_number(options: DataOptions, role: str, usual: int) -> int:
    """A column of a CoNLL file by its number from 1."""
    requested = options.columns.get(role)
    if requested is None:
        return usual
    if not is_number(requested) or int(requested) < 1:
        raise DataError(f"--column {role}={requested}: columns of a CoNLL file are numbered from 1")
    return int(requested)


def _tagged(words: Any, tags: Any, name: str, index: int) -> Row | Bad:
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


def read_questions(source: Path | RawTable, options: DataOptions) -> Iterator[Row | Bad]:
    """Rows of questions: id, question, context, answers (text and first character; none where the
    context has no answer).

    SQuAD's files of either version, or tables of `question`, `context` and `answers` ({"text": […],
    "answer_start": […]}).
    """
    articles = _squad(source) if isinstance(source, Path) else None
    if articles is not None:
        refuse_columns(options.columns, source, "articles of SQuAD")
        yield from _squad_rows(articles, str(source))
        return
    table = table_of(source, options)
    for i, row in enumerate(table.rows):
        answers = row.get(options.columns.get("answers", "answers"))
        if isinstance(answers, dict):
            texts, starts = answers.get("text"), answers.get("answer_start")
            if isinstance(texts, list) and isinstance(starts, list) and len(texts) == len(starts):
                pairs = zip(texts, starts, strict=True)
                answers = [{"text": text, "answer_start": start} for text, start in pairs]
        yield _question(row, row.get("context"), answers, table.where(i), i)


def _squad(path: Path) -> list[Any] | None:
    """The articles of a SQuAD file, or None for a file that is a list of rows."""
    if path.suffix.lower() != ".json":
        return None
    values = read_json(path, DataError)
    articles = values.get("data") if isinstance(values, dict) else None
    return articles if isinstance(articles, list) else None


def _squad_rows(articles: list[Any], path: str) -> Iterator[Row | Bad]:
    for a, article in enumerate(articles, start=1):
        for p, paragraph in enumerate(_objects(article, "paragraphs", f"{path} article {a}"), 1):
            place = f"{path} article {a}, paragraph {p}"
            for q, entry in enumerate(_objects(paragraph, "qas", place)):
                if not isinstance(entry, dict):
                    yield Bad("train", q, f"{place}, question {q + 1}", "it is not an object")
                    continue
                name = (
                    f"{path} {entry.get('id') or f'article {a}, paragraph {p}, question {q + 1}'}"
                )
                yield _question(entry, paragraph.get("context"), entry.get("answers"), name, q)


def _objects(value: Any, key: str, place: str) -> list[Any]:
    """The list under a key of an object; an absent one is empty."""
    if not isinstance(value, dict) or not isinstance(value.get(key, []), list):
        raise DataError(f"{place}: expected an object with a list {key!r}")
    found: list[Any] = value.get(key, [])
    return found


def _question(
    entry: dict[str, Any], context: Any, answers: Any, name: str, index: int
) -> Row | Bad:
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
            f"the answers are {answers!r:.200}; expected a list of text and answer_start",
        )
    found = []
    for each in answers:
        text, start = each.get("text"), each.get("answer_start")
        if not isinstance(text, str) or type(start) is not int or start < 0:
            return Bad(
                "train", index, name, f"the answer {each!r:.200} has no text or no answer_start"
            )
        if context[start : start + len(text)] != text:
            return Bad(
                "train",
                index,
                name,
                f"the answer {text!r:.200} is not at character {start} of its context",
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
