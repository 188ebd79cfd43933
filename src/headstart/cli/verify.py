"""The command `headstart verify`: real checkpoints against outputs that others published.

The expected values are in `package_data/expected_outputs.json`, each with its source. The image
that most of them were computed on is fetched when it is needed: its license is not settled, so it
is not part of the package.
"""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from headstart.cli.output import DATA_ERROR, JsonOption, emit
from headstart.errors import ConfigError, HeadstartError, HubError

Verdict = Literal["verified", "differs", "unreadable", "absent"]


def verify(
    name: Annotated[
        str | None, typer.Argument(help="A checkpoint with published outputs; see --list.")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="All of them, one after the other.")] = False,
    listing: Annotated[bool, typer.Option("--list", help="List the names, and stop.")] = False,
    image: Annotated[
        Path | None, typer.Option(help="The image of the expected values; default: fetched.")
    ] = None,
    ledger: Annotated[
        Path | None, typer.Option(help="File that gets a line of JSON for each check.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Compare a checkpoint's outputs with the published ones, as the authors and as transformers.

    The exit code is 3 if anything differs, cannot be read or cannot be fetched.

    Example: [bold]headstart verify google/bit-50[/bold]
    """
    expected = read_expected()
    chosen = [each for each in expected["networks"] if every or each["name"] == name]
    if listing:
        for each in expected["networks"]:
            if as_json:
                emit("verify", {"name": each["name"]})
            else:
                print(each["name"])
        return
    if not chosen:
        raise ConfigError(
            f"no published outputs are known of {name!r}; `headstart verify --list` lists the"
            " checkpoints"
        )
    wrong = False
    for entry in chosen:
        for line in check(entry, image, expected["image"]):
            if as_json:
                emit("verify", line)
            else:
                print(describe(line), flush=True)
            wrong = wrong or line["verdict"] != "verified"
            if ledger is not None:
                with ledger.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")
    if wrong:
        raise typer.Exit(DATA_ERROR)


def read_expected() -> dict[str, Any]:
    """The published outputs: the image's address, and for each network what is expected."""
    from importlib.resources import files

    text = files("headstart.package_data").joinpath("expected_outputs.json").read_text()
    values: dict[str, Any] = json.loads(text)
    return values


def check(entry: dict[str, Any], image: Path | None, address: str = "") -> list[dict[str, Any]]:
    """Compares a network's outputs with the published ones, under both `compat`s.

    Args:
        entry: Name, network class, input ("image" or token ids), the `first` expected outputs,
            perhaps the `answer` (largest class), `tolerance` and the `compat`s that must agree.
        image: The image; None fetches it from `address`.
        address: Where it is.

    Returns:
        For each `compat` what a line of the ledger holds: the outputs, the largest difference, and
        the verdict: "verified", "differs", "unreadable" (a damaged or unsuitable file) or "absent"
        (it cannot be fetched). Where the published values are those of the other `compat` alone,
        a difference is expected, and the verdict is "verified" all the same.
    """
    lines = []
    for compat in ("authors", "transformers"):
        line: dict[str, Any] = {"name": entry["name"], "compat": compat, "source": entry["source"]}
        line |= {"expected": entry["first"], "tolerance": entry["tolerance"]}
        line["published_for"] = entry["compat"]
        try:
            line |= _compared(entry, compat, image, address)
        except HubError as error:
            line |= {"verdict": "absent", "error": str(error)}
        except HeadstartError as error:
            line |= {"verdict": "unreadable", "error": str(error)}
        line |= {"date": datetime.now(UTC).isoformat(timespec="seconds"), "versions": _versions()}
        lines.append(line)
    return lines


def _compared(
    entry: dict[str, Any], compat: str, image: Path | None, address: str
) -> dict[str, Any]:
    import torch

    from headstart.auto import AutoImageProcessor
    from headstart.loading import family_of

    name = entry["name"]
    family, _ = family_of(name)
    network = family.load(entry["network"]).from_pretrained(name, compat=compat).eval()
    if entry["input"] == "image":
        processor = AutoImageProcessor.from_pretrained(name)
        inputs = processor(image or _fetched(address), return_tensors="pt")
    else:
        inputs = {"input_ids": torch.tensor([entry["input"]])}
    with torch.inference_mode():
        logits = network(**inputs).logits.flatten(0, -2)[0]
    first = logits[: len(entry["first"])].tolist()
    difference = max(abs(a - b) for a, b in zip(first, entry["first"], strict=True))
    agrees = difference <= entry["tolerance"]
    if "answer" in entry:
        agrees = agrees and int(logits.argmax()) == entry["answer"]
    binding = compat in entry["compat"]
    found = {"first": first, "answer": int(logits.argmax()), "difference": difference}
    return found | {
        "verdict": "verified" if agrees or not binding else "differs",
        "sha256": _hash(name),
    }


def _fetched(address: str) -> Path:
    from headstart.hub.download import Download, download

    return download(Download(address))


def _hash(name: str) -> str | None:
    """SHA-256 of a checkpoint's weights; None for shards."""
    import hashlib

    from headstart.hub.resolve import resolve_weights
    from headstart.loading import cached_file
    from headstart.registry import find_published

    found = find_published(name)
    path = cached_file(found[1]) if found else resolve_weights(name, local_files_only=True)
    if path is None or path.name.endswith(".index.json"):
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _versions() -> dict[str, str]:
    import numpy
    import torch

    from headstart._version import __version__

    return {"headstart": __version__, "torch": str(torch.__version__), "numpy": numpy.__version__}


def describe(line: dict[str, Any]) -> str:
    """A check in one line."""
    head = f"{line['name']} (compat={line['compat']}): {line['verdict']}"
    if "error" in line:
        return f"{head}: {line['error']}"
    ours = ", ".join(f"{value:.4f}" for value in line["first"])
    published = ", ".join(f"{value:.4f}" for value in line["expected"])
    expected = (
        "" if line["compat"] in line["published_for"] else " (published for the other compat)"
    )
    return (
        f"{head}: {ours}; published {published}{expected}; largest difference"
        f" {line['difference']:.1e}, tolerance {line['tolerance']:g}"
    )
