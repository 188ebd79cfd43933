"""`--json` of every command: lines of JSON on standard output, each with the version of the schema.

A command that prints lines as they come has a parameter `as_json` and calls `emit`; of any other
the returned mapping is printed, and what it prints for people goes to standard error.
"""

import functools
import inspect
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headstart.errors import HeadstartError

if TYPE_CHECKING:
    from headstart.tasks.result import Result

SCHEMA = "headstart/1"
JSON_HELP = "Print lines of JSON: see the page on scripts."
JsonOption = Annotated[bool, typer.Option("--json", help=JSON_HELP)]
DATA_ERROR = 3  # exit code where the data, not the call, is at fault
# Command → key → what it holds; keys in brackets are there only where they apply.
KEYS: dict[str, dict[str, str]] = {
    "train": {
        "folder": "path of the result, null after --dry-run",
        "evaluations": "split → examples, metrics, confidence_interval_95",
        "seconds": "time of the run",
        "estimated_seconds": "time that was expected, or null",
        "notes": "what the time limit cost",
        "[comparison]": "value, mean, interval, difference or error of each, with --set NAME=A,B",
    },
    "distill": {
        "folder": "path of the result, null after --dry-run",
        "evaluations": "split → examples, metrics, confidence_interval_95",
        "seconds": "time of the run",
        "estimated_seconds": "time that was expected, or null",
        "notes": "what the time limit cost",
    },
    "update": {
        "folder": "path of the result",
        "evaluations": "split → examples, metrics, confidence_interval_95",
        "seconds": "time of the command",
        "notes": "what was changed",
    },
    "forget": {
        "folder": "path of the result",
        "evaluations": "split → examples, metrics, confidence_interval_95",
        "seconds": "time of the command",
        "notes": "what was changed",
    },
    "plan": {"images": "paths, the best first", "reason": "typical or uncertain"},
    "evaluate": {
        "split": "which examples",
        "examples": "how many",
        "metrics": "name → value",
        "confidence_interval_95": "bounds of the headline metric, or null",
        "notes": "what to know about the evaluation",
    },
    "demo": {"pretrained": "accuracy of each draw", "random": "accuracy of each draw"},
    "audit": {
        "images": "how many",
        "unreadable": "pairs of name and reason",
        "pairs": "duplicates: first, second, kind, splits, labels, leaks, contradicts",
        "mislabelled": "name, split, label, likely, probability, likely_probability",
        "outliers": "name, split, label, distance",
        "bad_photos": "name, split, label, kind and reason of blurred, dark, … images",
        "agreement": "fraction of the labels that the network agrees with, or null",
    },
    "label": {
        "address": "where the page is",
        "out": "the table",
        "images": "how many",
        "done": "how many have a label",
    },
    "predict": {
        "[image]": "name of the image",
        "[text]": "name of the text",
        "[labels]": "label and score, best first",
        "[classes]": "label and fraction of the image",
        "[files]": "images that were written",
        "[masks]": "candidates of each mask",
        "[entities]": "label, score, start, end, word",
        "[answers]": "answer, score, start, end",
    },
    "embed": {
        "out": "the file, or with --ray the folder or URI",
        "rows": "its rows",
        "width": "length of a vector",
        "key": "hash of weights and preprocessing",
        "errors": "rows without a vector",
        "[failed]": "with --ray: messages of the blocks that failed",
    },
    "search": {
        "[row]": "number of the row, from 0",
        "[name]": "name of the image or text",
        "[similarity]": "cosine",
        "[content]": "the text",
        "[group]": "number of the group of near duplicates",
        "[rows]": "rows of the group: row, name, similarity",
    },
    "explain": {"images": "image, label, score and file (heat map) of each"},
    "optimize": {"out": "the folder", "report": "engine, precision, deviation, time"},
    "export": {"out": "the file", "deviation": "largest difference from PyTorch"},
    "check": {
        "file": "the file",
        "right": "whether it answers as PyTorch did",
        "images": "shape, expected, found, difference and right of each",
    },
    "convert": {"out": "the file or folder", "network": "its class", "weights": "their number"},
    "models": {
        "family": "bit, cvt, beit or yoso",
        "name": "its name",
        "parameters": "number of weights",
        "size": "bytes of the file, or null",
        "licence": "SPDX name",
        "image_size": "pixels, or null",
        "result": "published result",
        "hub_id": "name on the Hub, or null",
        "url": "address of the authors' file, or null",
        "cached": "path of the file here, or null",
    },
    "info": {
        "model": "its name",
        "family": "bit, cvt, beit or yoso",
        "compat": "authors or transformers",
        "classes": "their number",
        "class_names": "their names",
        "[tuned_from]": "the pretrained model",
        "[task]": "the task",
        "[evaluations]": "split → examples, metrics, confidence_interval_95",
        "[finished]": "when",
    },
    "verify": {
        "name": "the checkpoint",
        "compat": "whose arithmetic",
        "verdict": "verified, differs, unreadable or absent",
        "expected": "published outputs",
        "source": "where they are published",
        "tolerance": "largest difference that is accepted",
        "[first]": "our outputs",
        "[difference]": "the largest",
        "[error]": "why there are none",
    },
    "serve": {"address": "where it listens", "model": "its name"},
    "cache info": {
        "folder": "where features are",
        "bytes": "their size",
        "limit": "bytes that they may take",
        "networks": "name → bytes",
        "hashes": "bytes of the hashes by which near duplicates are found",
    },
    "cache clear": {"bytes": "what was removed"},
    "skill": {"skill": "the text"},
}
_running: list[str] = []  # the command that prints JSON, while it runs


def emit(command: str, values: Mapping[str, Any]) -> None:
    """Prints a line of JSON."""
    line = {"schema": SCHEMA, "command": command, **values}
    print(json.dumps(line, ensure_ascii=False, default=str), flush=True)


def emit_error(code: str, what: str, fix: str) -> None:
    """Prints an error as a line of JSON, where the running command prints JSON."""
    command = _running[-1] if _running else None
    if command is not None:
        emit(command, {"error": {"code": code, "what": what, "fix": fix}})


def emit_usage(arguments: Sequence[str], what: str) -> None:
    """Prints that a command line is not valid, before any command runs."""
    command = next((each for each in arguments if not each.startswith("-")), "")
    fix = f"`headstart {command} --help` lists what the command takes"
    emit(command, {"error": {"code": "usage", "what": what, "fix": fix}})


def emit_failure(error: HeadstartError, message: str) -> None:
    """Prints one of our errors with its message in the words of the command line."""
    what, _, fix = message.partition("; ")
    emit_error(error.code, what, fix or error.fix)


def result_values(found: "Result") -> dict[str, Any]:
    """The result of a run as JSON."""
    evaluations = {
        split: {
            "examples": each.examples,
            "metrics": each.metrics,
            "confidence_interval_95": each.interval,
        }
        for split, each in found.evaluations.items()
    }
    return {
        "folder": None if found.folder is None else str(found.folder),
        "evaluations": evaluations,
        "seconds": round(found.seconds, 1),
        "estimated_seconds": found.estimated,
        "notes": found.given_up,
    }


def prints_json(command: str | None) -> None:
    """Notes that a command prints JSON, or (None) that none runs."""
    _running.clear()
    if command is not None:
        _running.append(command)


def emit_fault(error: BaseException | None) -> None:
    """Prints what nobody expected as a line of JSON: it is a fault of headstart."""
    if isinstance(error, Exception):
        fix = "report it, with the traceback on standard error"
        emit_error("bug", f"{type(error).__name__}: {error}", fix)


def with_json(function: Callable[..., Any], name: str = "") -> Callable[..., Any]:
    """A command with the option `--json`.

    Args:
        function: The command.
        name: How lines of JSON call it; default as the function is called.
    """
    name = name or function.__name__
    signature = inspect.signature(function)
    own = "as_json" in signature.parameters

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> None:
        wanted = kwargs.get("as_json", False) if own else kwargs.pop("as_json", False)
        if wanted:
            prints_json(name)
        if own or not wanted:
            function(*args, **kwargs)
            return
        with redirect_stdout(sys.stderr):
            values = function(*args, **kwargs)
        emit(name, values or {})

    if not own:
        option = inspect.Parameter(
            "as_json", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=JsonOption
        )
        parameters = [*signature.parameters.values(), option]
        run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {**function.__annotations__, "as_json": JsonOption}
    return run
