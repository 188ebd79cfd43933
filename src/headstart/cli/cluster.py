"""`--ray` of predict and embed: the same rows, computed by a cluster."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import typer

from headstart.cli.output import DATA_ERROR, emit
from headstart.cli.terminal import print_line
from headstart.errors import ConfigError, InputError

if TYPE_CHECKING:
    from headstart.data.blocks import Block


@dataclass(frozen=True)
class Inputs:
    """What a command was given.

    Args:
        files: Paths and URIs.
        texts: Texts themselves.
        question: The question about every text.
        by_line: Each line of a text file is a text.
    """

    files: Sequence[str]
    texts: Sequence[str]
    question: str | None
    by_line: bool

    def blocks(self, task: str) -> "list[Block]":
        """The inputs in blocks; `task` is that of a text model, "" of one of images."""
        from headstart.data.blocks import image_blocks, text_blocks

        if task:
            found = text_blocks(task, self.files, self.texts, self.question, self.by_line)
            return list(found)
        if self.texts or self.by_line:
            raise InputError("--text and --lines are for models of texts; this one reads images")
        return list(image_blocks(self.files))


@dataclass(frozen=True)
class Cluster:
    """Where blocks are computed.

    Args:
        address: See `headstart.serving.ray.run_blocks`.
        actors: Models in the cluster.
        resume: Continue what is there.
    """

    address: str
    actors: int | None
    resume: bool


def check_absent(files: Iterable[str] | None, out: str | None, actors: int | None) -> None:
    """Refuses what only a cluster can do.

    Raises:
        ConfigError: A URI, or a number of actors.
    """
    from headstart.data.storage import is_uri

    if actors is not None:
        raise ConfigError("--actors are of a Ray cluster; give --ray too (--ray local)")
    for name in [*(files or ()), *([out] if out else [])]:
        if is_uri(name):
            raise ConfigError(f"{name}: URIs are read and written with --ray (--ray local)")


def predict(
    task: str,
    options: Mapping[str, Any],
    inputs: Inputs,
    out: str | None,
    as_json: bool,
    where: Cluster,
) -> None:
    """Predicts by a cluster and writes a folder of Parquet files."""
    from headstart.data.text_files import TASKS

    if task not in (*TASKS, "image-classification"):
        raise ConfigError(
            f"--ray is for models that classify images and for models of texts;"
            f" {options['model']} is one of {task}"
        )
    if as_json:
        raise ConfigError("--json prints and --ray writes Parquet files; leave --json out")
    _run("predict", options, inputs.blocks(task if task in TASKS else ""), out, where)


def embed(
    options: Mapping[str, Any], inputs: Inputs, out: str, as_json: bool, where: Cluster
) -> None:
    """Embeds by a cluster and writes a folder of Parquet files."""
    from headstart.loading import family_of

    family, _ = family_of(options["model"])
    blocks = inputs.blocks("text-classification" if family.reads_text else "")
    _run("embed", options, blocks, out, where, as_json)


def _run(
    command: str,
    options: Mapping[str, Any],
    blocks: "list[Block]",
    out: str | None,
    where: Cluster,
    as_json: bool = False,
) -> None:
    from headstart.data.results import EMBEDDING_SUFFIXES, RESULT_SUFFIXES
    from headstart.progress import progress_for_terminal
    from headstart.serving.ray import run_blocks

    if out is None or out.lower().endswith((*RESULT_SUFFIXES, *EMBEDDING_SUFFIXES)):
        raise ConfigError(
            f"--out {out or 'is missing'}: with --ray it is a folder or URI that every machine can"
            " write to; it is filled with Parquet files"
        )
    with progress_for_terminal() as progress:
        found = run_blocks(
            command,
            options,
            blocks,
            out,
            address=where.address,
            actors=where.actors,
            resume=where.resume,
            progress=progress,
        )
    lost = f", {found.errors} with an error" if found.errors else ""
    failed = f"; {len(found.failed)} of {found.blocks} blocks failed" if found.failed else ""
    again = " (--resume computes only these again)" if found.failed else ""
    if as_json:
        facts = {"width": int(found.facts.get("width", 0)), "key": found.facts.get("key", "")}
        counts = {"rows": found.rows, "errors": found.errors, "failed": found.failed}
        emit(command, {"out": out} | counts | facts)
    else:
        print_line(f"{out}: {found.rows} rows in {found.done} files{lost}{failed}{again}")
    if found.errors or found.failed:
        raise typer.Exit(DATA_ERROR)
