"""The command `headstart verify`: real checkpoints against outputs that others published.

The expected values are in `package_data/expected_outputs.json`, each with its source and with the
preprocessing that it was computed with. The two images are fetched when they are needed: their
licenses are not settled, so they are not part of the package.
"""

import json
from collections.abc import Mapping
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
        Path | None,
        typer.Option(help="The photo of the expected values (COCO 39769); default: fetched."),
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
        for known in dict.fromkeys(each["name"] for each in expected["networks"]):
            if as_json:
                emit("verify", {"name": known})
            else:
                print(known)
        return
    if not chosen:
        raise ConfigError(
            f"no published outputs are known of {name!r}; `headstart verify --list` lists the"
            " checkpoints"
        )
    wrong = False
    for entry in chosen:
        given = image if entry.get("image", "cats") == "cats" else None
        for line in check(entry, given, expected["images"]):
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
    """The published outputs: the images' addresses, and for each network what is expected."""
    from importlib.resources import files

    text = files("headstart.package_data").joinpath("expected_outputs.json").read_text()
    values: dict[str, Any] = json.loads(text)
    return values


def check(
    entry: dict[str, Any], image: Path | None, addresses: Mapping[str, str] | None = None
) -> list[dict[str, Any]]:
    """Compares a network's outputs with the published ones, under both `compat`s.

    Args:
        entry: Name, network class, input ("image", token ids, or {"first": N} for ids 0 to N - 1),
            the `expected` corner of the output of the one input, `tolerance`, and the `compat`s
            that must agree; perhaps the `answer` (largest class), the key `image` of the photo,
            the values of the `processor`, and the number of `masked` patches.
        image: The photo; None fetches it.
        addresses: Where the photos are.

    Returns:
        For each `compat` what a line of the ledger holds: the outputs, the largest difference, and
        the verdict: "verified", "differs", "unreadable" (a damaged or unsuitable file) or "absent"
        (it cannot be fetched). Where the published values are those of the other `compat` alone,
        a difference is expected, and the verdict is "verified" all the same.
    """
    lines = []
    for compat in ("authors", "transformers"):
        line: dict[str, Any] = {"name": entry["name"], "network": entry["network"]}
        line |= {"compat": compat, "source": entry["source"]}
        line |= {"expected": entry["expected"], "tolerance": entry["tolerance"]}
        line["published_for"] = entry["compat"]
        try:
            line |= _compared(entry, compat, image, addresses or {})
        except HubError as error:
            line |= {"verdict": "absent", "error": str(error)}
        except HeadstartError as error:
            line |= {"verdict": "unreadable", "error": str(error)}
        line |= {"date": datetime.now(UTC).isoformat(timespec="seconds"), "versions": _versions()}
        lines.append(line)
    return lines


def _compared(
    entry: dict[str, Any], compat: str, image: Path | None, addresses: Mapping[str, str]
) -> dict[str, Any]:
    import torch

    from headstart.loading import family_of

    family, _ = family_of(entry["name"])
    network = family.load(entry["network"]).from_pretrained(entry["name"], compat=compat).eval()
    with torch.inference_mode():
        made = network(**_inputs(entry, image, addresses))
    out = made.logits if "logits" in made else made.last_hidden_state
    out = out[0].float()
    expected = torch.tensor(entry["expected"])
    found = out[tuple(slice(size) for size in expected.shape)]
    difference = float((found - expected).abs().max())
    agrees = difference <= entry["tolerance"]
    facts = {"found": found.tolist(), "difference": difference}
    if "answer" in entry:
        facts["answer"] = int(out.argmax())
        agrees = agrees and facts["answer"] == entry["answer"]
    binding = compat in entry["compat"]
    verdict = "verified" if agrees or not binding else "differs"
    return {**facts, "verdict": verdict, "sha256": _hash(entry["name"])}


def _inputs(
    entry: dict[str, Any], image: Path | None, addresses: Mapping[str, str]
) -> dict[str, Any]:
    """What the network was run on."""
    import torch

    from headstart.auto import AutoImageProcessor

    ids = entry["input"]
    if ids != "image":
        ids = list(range(ids["first"])) if isinstance(ids, dict) else ids
        return {"input_ids": torch.tensor([ids])}
    if "processor" in entry:
        from headstart.loading import family_of

        values = dict(entry["processor"])
        family, _ = family_of(entry["name"])
        processor = family.load(values.pop("image_processor_type"))(**values)
    else:
        processor = AutoImageProcessor.from_pretrained(entry["name"])
    photo = image or _fetched(addresses[entry.get("image", "cats")])
    inputs = dict(processor(photo, return_tensors="pt"))
    if "masked" in entry:
        inputs["bool_masked_pos"] = torch.ones(1, entry["masked"], dtype=torch.bool)
    return inputs


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
    """A check in one line, with the first numbers of each side."""
    head = f"{line['name']}, {line['network']} (compat={line['compat']}): {line['verdict']}"
    if "error" in line:
        return f"{head}: {line['error']}"
    ours, published = (
        ", ".join(f"{value:.4f}" for value in _first_row(line[side]))
        for side in ("found", "expected")
    )
    other = "" if line["compat"] in line["published_for"] else " (published for the other compat)"
    return (
        f"{head}: {ours}; published {published}{other}; largest difference"
        f" {line['difference']:.1e}, tolerance {line['tolerance']:g}"
    )


def _first_row(values: list[Any]) -> list[float]:
    while isinstance(values[0], list):
        values = values[0]
    return values
