"""Predictions and vectors by a cluster: Ray Data hands blocks of inputs to a pool of actors, each
of which holds the model and writes a block as one Parquet file.

A file that is there is complete, and its block is not computed again: neither where Ray repeats it
because a machine was lost, nor where a run is continued.
"""

import hashlib
import json
import logging
import os
import pickle
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from headstart.checkpoint.documents import parse_json
from headstart.data.blocks import Block
from headstart.data.results import FACTS, arrow_table, pyarrow_parquet
from headstart.data.storage import join, open_storage, read_file, written_whole
from headstart.errors import ConfigError, HeadstartError, InputError, MissingExtraError, listed
from headstart.progress import Progress, Silent
from headstart.serving.batches import BatchEmbedder, Batches, BatchPredictor

MANIFEST = "_headstart.json"  # readers of Parquet folders pass over names that begin with _
LOCAL = "local"
TRIES = 3  # of a block whose files or storage fail
PAUSE = 2.0  # seconds before a block is tried again
SHOWN = 5  # errors of rows that a block reports
CPUS_PER_ACTOR = 4  # where the number of actors is not given
SETTINGS = ("HEADSTART_MAX_PIXELS",)  # variables of the environment that actors follow


@dataclass
class Summary:
    """What a run on a cluster has done.

    Args:
        rows: Rows that were written, those of earlier runs included.
        errors: Rows with an error.
        blocks: Number of blocks.
        done: Blocks that are written.
        failed: Message of each block that could not be computed.
        seconds: Time of this run.
        facts: What is true of all rows, such as key and width of vectors.
    """

    rows: int = 0
    errors: int = 0
    blocks: int = 0
    done: int = 0
    failed: list[str] = field(default_factory=list)
    seconds: float = 0.0
    facts: dict[str, str] = field(default_factory=dict)


# Actors -------------------------------------------------------------------------------------------


class BlockWriter:
    """An actor of the pool: a model, and what writes a block's results.

    Args:
        kind: "predict" or "embed".
        options: Arguments of `BatchPredictor` or `BatchEmbedder`.
        out: Folder or URI of the results.
        environment: Variables that the actor follows.
        threads: Threads that the network computes with.
    """

    def __init__(
        self,
        kind: str,
        options: Mapping[str, Any],
        out: str,
        environment: Mapping[str, str],
        threads: int,
    ) -> None:
        import torch

        os.environ.update(environment)
        torch.set_num_threads(threads)
        self.batches, self.out = _batches(kind, options), out

    def __call__(self, batch: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
        """Writes the blocks of a batch; the answer says what became of each."""
        found = [
            self._write(int(number), pickle.loads(block))
            for number, block in zip(batch["number"], batch["block"], strict=True)
        ]
        return {key: [each[key] for each in found] for key in found[0]}

    def _write(self, number: int, block: Block) -> dict[str, Any]:
        for attempt in range(1, TRIES + 1):
            try:
                found = write_block(self.batches, block, part_name(self.out, number))
                return {"number": number, **found, "failed": ""}
            except (HeadstartError, OSError) as error:
                reason = f"{block}: {error}"
                if isinstance(error, HeadstartError) and not isinstance(error, OSError):
                    break  # wrong data stays wrong
                if attempt < TRIES:
                    time.sleep(PAUSE * attempt)
        nothing = {"rows": 0, "errors": 0, "messages": "[]", "facts": "{}"}
        return {"number": number, **nothing, "failed": reason}


def _batches(kind: str, options: Mapping[str, Any]) -> Batches:
    return BatchEmbedder(**options) if kind == "embed" else BatchPredictor(**options)


def write_block(batches: Batches, block: Block, part: str) -> dict[str, Any]:
    """Computes a block and writes its Parquet file, unless it is there.

    Args:
        batches: What computes rows.
        block: The inputs.
        part: Path or URI of the file.

    Returns:
        Numbers of rows and of errors, and the first messages as JSON.

    Raises:
        DataError: The inputs cannot be read.
        OSError: The storage failed.
    """
    known = read_part(part)
    if known is not None:
        return known
    rows = list(batches.rows(block.read()))
    messages = [row["error"] for row in rows if row.get("error")]
    summary = {"rows": len(rows), "errors": len(messages)}
    facts = batches.facts | {key: str(value) for key, value in summary.items()}
    table = arrow_table(rows, batches.columns, facts)
    with written_whole(part) as file:
        pyarrow_parquet().write_table(table, file)
    found = {"messages": json.dumps(messages[:SHOWN]), "facts": json.dumps(batches.facts)}
    return {**summary, **found}


def part_name(out: str, number: int) -> str:
    """The file of a block; names are in the order of the inputs."""
    return join(out, f"part-{number:08d}.parquet")


def read_part(part: str) -> dict[str, Any] | None:
    """The numbers that the file of a block records, or None where there is no such file."""
    storage, path = open_storage(part)
    try:
        with storage.open_input_file(path) as file:
            schema = pyarrow_parquet().read_schema(file)
    except FileNotFoundError:
        return None
    facts = json.loads((schema.metadata or {}).get(FACTS, b"{}"))
    counts = {key: int(facts.pop(key)) for key in ("rows", "errors")}
    return {**counts, "messages": "[]", "facts": json.dumps(facts)}


# Run ----------------------------------------------------------------------------------------------


def run_blocks(
    kind: str,
    options: Mapping[str, Any],
    blocks: Sequence[Block],
    out: str,
    *,
    address: str = LOCAL,
    actors: int | None = None,
    resume: bool = False,
    progress: Progress | None = None,
) -> Summary:
    """Computes blocks on a Ray cluster and writes one Parquet file for each.

    Args:
        kind: "predict" or "embed".
        options: Arguments of `BatchPredictor` or `BatchEmbedder`.
        blocks: The inputs; see `headstart.data.blocks`.
        out: Folder or URI that every machine of the cluster can write to.
        address: Address of the cluster, "auto" for the one that this machine belongs to, or
            "local" for one of this machine alone.
        actors: Models in the cluster; None is one for every four processors.
        resume: Continue what is in `out`.
        progress: Shows what is done.

    Returns:
        What was done.

    Raises:
        InputError: There are results in `out`, or they are of other inputs or options.
        ConfigError: No cluster answers.
        MissingExtraError: Ray is not installed.
    """
    show, began = progress or Silent(), time.perf_counter()
    check_manifest(out, manifest_of(kind, options, blocks), resume)
    summary = Summary(blocks=len(blocks))
    open_ones = []
    for number, block in enumerate(blocks):
        known = read_part(part_name(out, number)) if resume else None
        if known is None:
            open_ones.append((number, block))
        else:
            _count(summary, known)
    first = summary.done
    if first:
        _check_model(kind, options, summary.facts, out)
    show.start(kind, len(blocks), done=first, unit="blocks")
    if open_ones:
        with connected(address) as ray:
            for each in _compute(ray, kind, options, open_ones, out, actors):
                if each["failed"]:
                    summary.failed.append(each["failed"])
                    show.report(f"headstart: a block failed: {each['failed']}")
                    continue
                _count(summary, each)
                _say_errors(each, show)
                rate = (summary.done - first) / (time.perf_counter() - began)
                show.update(summary.done, {}, rate)
    summary.seconds = time.perf_counter() - began
    return summary


def _check_model(kind: str, options: Mapping[str, Any], known: Mapping[str, str], out: str) -> None:
    """Refuses to continue the results of another model of the same name."""
    key = _batches(kind, {**options, "device": None}).facts["key"]
    if known.get("key") != key:
        raise InputError(
            f"{out} cannot be continued: {options['model']} has other weights or settings than when"
            " it was begun; give another --out"
        )


def _count(summary: Summary, found: Mapping[str, Any]) -> None:
    """Adds a block that is written."""
    summary.done += 1
    summary.rows += int(found["rows"])
    summary.errors += int(found["errors"])
    summary.facts = json.loads(found["facts"])


def _say_errors(found: Mapping[str, Any], show: Progress) -> None:
    """Shows the first errors of a block."""
    messages = json.loads(found["messages"])
    for message in messages:
        show.report(f"headstart: {message}")
    if found["errors"] > len(messages):
        show.report(f"headstart: and {found['errors'] - len(messages)} more in this block")


def _compute(
    ray: Any,
    kind: str,
    options: Mapping[str, Any],
    blocks: Sequence[tuple[int, Block]],
    out: str,
    actors: int | None,
) -> Iterator[Mapping[str, Any]]:
    """What becomes of each block, as it becomes known."""
    resources = ray.cluster_resources()
    processors = max(1, int(resources.get("CPU", 1)))
    count = min(actors or max(1, processors // CPUS_PER_ACTOR), len(blocks))
    cuda = str(options.get("device") or "").startswith("cuda")
    arguments = {
        "kind": kind,
        "options": dict(options),
        "out": out,
        "environment": {key: os.environ[key] for key in SETTINGS if key in os.environ},
        "threads": max(1, processors // count),
    }
    items = [{"number": number, "block": pickle.dumps(block)} for number, block in blocks]
    # One block a task: it is what is repeated where a machine is lost. An actor asks for one
    # processor only, so that there is room for it on the machines that remain.
    found = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        BlockWriter,
        fn_constructor_kwargs=arguments,
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=count),
        num_cpus=1,
        num_gpus=1 if cuda else 0,
    )
    yield from found.iter_rows()


@contextmanager
def connected(address: str) -> Iterator[Any]:
    """The module `ray`, connected to a cluster; a cluster of this machine alone ends with it.

    Raises:
        ConfigError: No cluster answers.
        MissingExtraError: Ray is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent anywhere
    try:
        import ray
        import ray.data
    except ImportError:
        raise MissingExtraError("ray", "ray") from None
    quiet: dict[str, Any] = {"logging_level": "error", "log_to_driver": False}
    if address == LOCAL:
        quiet["include_dashboard"] = False
    ours = not ray.is_initialized()
    if ours:
        try:
            ray.init(address=address, **quiet)
        except (ConnectionError, TimeoutError, RuntimeError, ValueError) as error:
            raise ConfigError(
                f"no Ray cluster at {address!r}: {' '.join(str(error).split())}; start one with"
                " `ray start --head`, or give --ray local"
            ) from None
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    try:
        yield ray
    finally:
        if ours:
            ray.shutdown()


# Manifest -----------------------------------------------------------------------------------------


def manifest_of(kind: str, options: Mapping[str, Any], blocks: Sequence[Block]) -> dict[str, Any]:
    """What decides the results, as JSON."""
    hashed = hashlib.sha256()
    for block in blocks:
        hashed.update(json.dumps(block.identity()).encode(errors="surrogateescape"))
    decisive = {k: v for k, v in options.items() if k not in ("device", "workers", "batch_size")}
    return {
        "command": kind,
        **{key: value for key, value in decisive.items() if value is not None},
        "blocks": len(blocks),
        "inputs": hashed.hexdigest(),
    }


def check_manifest(out: str, manifest: Mapping[str, Any], resume: bool) -> None:
    """Writes the manifest of a new run; refuses to continue one of other inputs or options."""
    file = join(out, MANIFEST)
    try:
        text = read_file(file).decode(errors="replace")
    except FileNotFoundError:
        with written_whole(file) as new:
            new.write(json.dumps(manifest, indent=2).encode())
        return
    if not resume:
        raise InputError(
            f"{out} holds results; continue them with --resume, or choose another --out"
        )
    found = parse_json(text, file, InputError)
    names = [key for key in manifest if found.get(key) != manifest[key]]
    if names:
        raise InputError(
            f"{out} cannot be continued: {listed(names)} changed since it was begun; give the same"
            " model, options and inputs, or another --out"
        )
