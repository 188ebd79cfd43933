"""Prediction with text models: files of texts in, one result for each text out."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from headstart.checkpoint.documents import read_text
from headstart.data.options import DataOptions
from headstart.data.results import Kind
from headstart.data.sources.raw import RawTable
from headstart.data.sources.tables import TABLE_SUFFIXES, read_table
from headstart.data.text_rows import text_cell, text_columns
from headstart.errors import ConfigError, InputError
from headstart.pipelines.base import pipeline
from headstart.pipelines.confidence import UNKNOWN

TASKS = ("text-classification", "fill-mask", "token-classification", "question-answering")
Named = tuple[str, Any]  # how a text is named to the user, and what its pipeline takes
KEYS = {
    "text-classification": "labels",
    "fill-mask": "masks",
    "token-classification": "entities",
    "question-answering": "answers",
}


def read_inputs(
    task: str, paths: list[Path], texts: list[str], question: str | None, by_line: bool
) -> list[Named]:
    """The texts of files and of the command line.

    Args:
        task: A name in `TASKS`.
        paths: Text files, each one text; tables, each row one text, pair or question; folders of
            text files.
        texts: Texts themselves.
        question: The question about every text.
        by_line: Each line of a text file is a text.

    Raises:
        InputError: No texts, or a file that cannot be read as text.
    """
    found = [(f"text {i + 1}", text) for i, text in enumerate(texts)]
    for path in paths:
        files = sorted(path.glob("*.txt")) if path.is_dir() else [path]
        if not files:
            raise InputError(f"the folder {path} holds no .txt files")
        for file in files:
            found += (
                table_texts(task, read_table(file))
                if file.suffix.lower() in TABLE_SUFFIXES
                else _lines(file, by_line)
            )
    if not found:
        raise InputError("which texts? Give text files, tables, or --text 'some words'")
    if task != "question-answering":
        return found
    if question is None and any(isinstance(each, str) for _, each in found):
        raise InputError("which question? Give --question, or a table of questions and contexts")
    return [
        (name, {"question": question, "context": each} if isinstance(each, str) else each)
        for name, each in found
    ]


def _lines(path: Path, by_line: bool) -> list[Named]:
    text = read_text(path, error=InputError)
    if by_line:
        return [
            (f"{path} line {i}", line)
            for i, line in enumerate(text.split("\n"), start=1)
            if line.strip()
        ]
    if not text.strip():
        raise InputError(f"{path} holds no text")
    return [(str(path), text)]


def table_texts(task: str, table: RawTable) -> list[Named]:
    """The rows of a table: texts, pairs, or questions with contexts.

    Raises:
        InputError: No such columns, or a row without a text.
    """
    bad, found = list[str](), list[Named]()
    if task == "question-answering":
        columns = (
            table.usual_column(("question",)),
            table.usual_column(("context", "passage", "text")),
        )
        if not all(columns):
            raise InputError(
                f"{table.path}: columns are {', '.join(table.columns)}; expected question and"
                " context"
            )
        names: tuple[str, str | None] = ("question", "context")
    else:
        columns, names = text_columns(table, DataOptions()), ("text", "text_pair")
    for i, row in enumerate(table.rows):
        cells = {
            name: text_cell(row, column, bad)
            for name, column in zip(names, columns, strict=True)
            if column
        }
        if bad:
            raise InputError(f"{table.where(i)}: {'; '.join(bad)}")
        found.append((table.where(i), cells["text"] if len(cells) == 1 else cells))
    return found


def text_pipeline(
    task: str,
    model: str,
    *,
    batch_size: int | None = None,
    long: str = "refuse",
    hash_error: float | None = None,
    settings: Mapping[str, Any] | None = None,
    device: str | None = None,
    refuse: bool | float = False,
) -> Any:
    """The pipeline of a text model, with the options of the command line.

    Args:
        task: A name in `TASKS`.
        model: A folder, a Hub id or an authors' name.
        batch_size: Texts that go through the network together; None is as the pipeline has it.
        long: What becomes of texts that are longer than the network reads: "refuse", "cut", or
            "extend" (positions are repeated, and attention is sampled).
        hash_error: Sample attention with as many hashes as keep its error to this fraction.
        settings: Values of the configuration.
        device: Where to compute.
        refuse: See `TextClassificationPipeline`.

    Raises:
        ConfigError: A task that cannot refuse, or an option that it does not have.
    """
    if long not in ("refuse", "cut", "extend"):
        raise ConfigError(f"--long {long}; expected refuse, cut or extend")
    if refuse is not False and task != "text-classification":
        raise ConfigError(f"--refuse is for models that classify; {model} is one of {task}")
    values = dict(settings or {})
    if hash_error is not None:
        values |= {"use_expectation": False, "hash_error": hash_error}
    options: dict[str, Any] = {
        "truncation": long == "cut",
        "extend_positions": long == "extend",
        "model_kwargs": values,
    }
    if refuse is not False:
        options["refuse"] = refuse
    if batch_size is not None:
        options["batch_size"] = batch_size
    run = pipeline(task, model, device=device, **options)
    run.ways_out = ("--long cut", "--long extend")
    return run


def stream_texts(
    run: Any, task: str, inputs: list[Named], top: int
) -> Iterator[tuple[str, list[Any]]]:
    """The name of each text, and what a pipeline predicts for it.

    Args:
        run: From `text_pipeline`.
        task: A name in `TASKS`.
        inputs: From `read_inputs`.
        top: Labels, guesses or answers for each.
    """
    names, texts = [name for name, _ in inputs], [text for _, text in inputs]
    if task == "question-answering":
        for name, text in inputs:
            found = run(text, top_k=top)
            yield name, found if isinstance(found, list) else [found]
    elif task == "text-classification":
        yield from zip(names, run.stream(texts, top, names=names), strict=True)
    elif task == "token-classification":
        yield from zip(names, run.stream(texts, "simple", names=names), strict=True)
    else:
        for name, found in zip(names, run.stream(texts, top, names=names), strict=True):
            masks = found if isinstance(found[0], list) else [found]
            yield (
                name,
                [
                    [{key: each[key] for key in ("token_str", "score")} for each in mask]
                    for mask in masks
                ],
            )


def as_line(task: str, found: list[Any]) -> str:
    """A result as people read it."""
    if task == "fill-mask":
        return " | ".join(
            "  ".join(f"{each['token_str'].strip()} {each['score']:.1%}" for each in mask)
            for mask in found
        )
    if task == "token-classification":
        return "  ".join(
            f"{' '.join(each['word'].split())} ({each['entity_group']} {each['score']:.0%})"
            for each in found
        )
    if task == "question-answering":
        return "  ".join(
            f"{' '.join(each['answer'].split()) or '(none)'} {each['score']:.1%}" for each in found
        )
    return "  ".join(f"{each['label']} {each['score']:.1%}" for each in found)


def text_columns_of(task: str, kind: str | None) -> dict[str, Kind]:
    """Columns of the table of predictions for texts.

    Args:
        task: A name in `TASKS`.
        kind: `problem_type` of a classifier.
    """
    if task == "fill-mask":
        return {"text": "text", "masks": "json"}
    if task == "token-classification":
        return {"text": "text", "spans": "json"}
    if task == "question-answering":
        return {
            "text": "text",
            "answer": "text",
            "probability": "number",
            "start": "integer",
            "end": "integer",
            "spans": "json",
        }
    if kind == "regression":
        return {"text": "text", "values": "scores"}
    if kind == "multi_label_classification":
        return {"text": "text", "labels": "scores"}
    return {
        "text": "text",
        "label": "text",
        "probability": "number",
        "top_k": "scores",
        "refused": "flag",
    }


def text_row(task: str, name: str, found: list[Any], columns: Mapping[str, Kind]) -> dict[str, Any]:
    """A result of `stream_texts` as a row of its table."""
    best = found[0] if found else {}
    if task == "token-classification":
        spans = [
            {
                "label": each["entity_group"],
                "score": float(each["score"]),
                "start": each["start"],
                "end": each["end"],
                "text": each["word"],
            }
            for each in found
        ]
        return {"text": name, "spans": spans}
    if task == "question-answering":
        row = {"answer": best["answer"], "start": best["start"], "end": best["end"]}
        return {"text": name, **row, "probability": best["score"], "spans": found}
    if task == "fill-mask":
        return {"text": name, "masks": found}
    refused = best.get("label") == UNKNOWN
    row = {
        "label": None if refused else best.get("label"),
        "probability": best.get("score"),
        "refused": refused,
    }
    row |= dict.fromkeys(("top_k", "labels", "values"), found)
    return {"text": name} | {key: value for key, value in row.items() if key in columns}
