"""Tars: class folders in a tar, and WebDataset shards, whose members `000017.jpg`, `000017.cls`,
`000017.json` are one sample.

Nothing is unpacked: pictures are read in place when they are needed, and a member whose name leads
outside is refused.
"""

import re
import tarfile
from pathlib import Path, PurePosixPath
from typing import Any

from headstart.checkpoint.documents import parse_json
from headstart.data.interpret import LABEL_COLUMNS, SEVERAL_COLUMNS, read_image_table
from headstart.data.options import DataOptions
from headstart.data.sources.raw import IMAGE_SUFFIXES, MASK_NAMES, Raw, Slice
from headstart.data.sources.tables import Table
from headstart.errors import DataError

SIDECARS = ("cls", "json", "txt")  # what a sample of a WebDataset may say about its picture
LARGEST = 1 << 20  # bytes of a sidecar
EXPECTED = {
    "label": " in class folders; expected members like CLASS/image.jpg, or 0.jpg and 0.cls",
    "mask": " with masks; expected members like 0.jpg and 0.mask.png",
    "none": "",
}
BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")


def expand(path: Path) -> list[Path]:
    """The files that `shard-{0000..0003}.tar` stands for; a path without braces is itself."""
    found = BRACES.search(str(path))
    if found is None or path.exists():
        return [path]
    first, last = int(found[1]), int(found[2])
    if last < first:
        raise DataError(f"{path}: {found[0]} counts down; expected the lower number first")
    if last - first >= 1_000_000:
        raise DataError(f"{path}: {found[0]} stands for {last - first + 1} files")
    width = len(found[1]) if found[1].startswith("0") else 0
    parts = (
        f"{str(path)[: found.start()]}{number:0{width}d}{str(path)[found.end() :]}"
        for number in range(first, last + 1)
    )
    return [each for part in parts for each in expand(Path(part))]


def read_tar(path: Path, options: DataOptions, notes: list[str]) -> Raw:
    """A plain tar of either kind.

    WebDataset where a picture has a sidecar (or a mask), class folders else.
    """
    try:
        with tarfile.open(path, "r:") as tar:
            members = sorted((m for m in tar if m.isfile()), key=lambda m: m.name)
    except (tarfile.TarError, EOFError) as error:
        raise DataError(f"{path} is not a plain (uncompressed) tar: {error}") from None
    samples: dict[str, list[tuple[str, tarfile.TarInfo]]] = {}
    for member in members:
        key, extension = _key(path, member.name)
        samples.setdefault(key, []).append((extension, member))
    kinds = [{kind for kind, _ in parts} for parts in samples.values()]
    tells = _is_mask if options.target == "mask" else SIDECARS.__contains__
    if any(any(map(tells, each)) and any(map(_is_picture, each)) for each in kinds):
        return _samples(path, samples, options, notes)
    return _class_folders(path, members, options, notes)


def _is_picture(extension: str) -> bool:
    return f".{extension}" in IMAGE_SUFFIXES


def _is_mask(extension: str) -> bool:
    name, _, suffix = extension.partition(".")
    return name in MASK_NAMES and _is_picture(suffix)


def _key(path: Path, name: str) -> tuple[str, str]:
    """Sample and kind of a member: its name is cut at the first dot of its last part."""
    parts = PurePosixPath(name).parts
    if name.startswith("/") or "\\" in name or ".." in parts or not parts:
        raise DataError(
            f"{path}: the member {name!r} leads outside the tar; such a tar is not read"
        )
    stem, _, extension = parts[-1].partition(".")
    return "/".join((*parts[:-1], stem)), extension.lower()


def _samples(
    path: Path,
    samples: dict[str, list[tuple[str, tarfile.TarInfo]]],
    options: DataOptions,
    notes: list[str],
) -> Raw:
    """The samples of a shard as a table.

    `image`, `label` (cls), the values of the JSON object, `txt`; or `image` and its masks.
    """
    rows, places, columns, without = [], [], dict[str, None](), 0
    with path.open("rb") as file:
        for key, parts in samples.items():
            pictures = [member for kind, member in parts if _is_picture(kind)]
            kinds = [kind for kind, _ in parts]
            if not pictures:
                without += 1
                continue
            if len(pictures) > 1 or len(set(kinds)) < len(kinds):
                raise DataError(
                    f"{path}: sample {key} has members {', '.join(kinds)}; expected one picture and"
                    " one of each kind"
                )
            row = _row(
                {kind: _sidecar(file, path, member) for kind, member in parts if kind in SIDECARS},
                f"{path}:{pictures[0].name}",
            )
            if options.target == "mask":
                row = {
                    kind.partition(".")[0]: _slice(path, member)
                    for kind, member in parts
                    if _is_mask(kind)
                }
            rows.append(row | {"image": _slice(path, pictures[0])})
            columns |= dict.fromkeys(rows[-1])
            places.append(pictures[0].name)
    if without:
        notes.append(f"{without} samples of {path} have no picture and are left alone")
    table = Table(path, list(columns), rows, "member", places)
    if "label" not in columns and not any(
        each.lower() in (*LABEL_COLUMNS, *SEVERAL_COLUMNS) for each in columns
    ):
        table.rows = [
            {"label" if key == "txt" else key: value for key, value in row.items()} for row in rows
        ]
        table.columns = ["label" if column == "txt" else column for column in columns]
    return read_image_table(table, options)["train"]


def _slice(path: Path, member: tarfile.TarInfo) -> Slice:
    return Slice(path, member.offset_data, member.size)


def _sidecar(file: Any, path: Path, member: tarfile.TarInfo) -> str:  # noqa: ANN401 - a binary file
    if member.size > LARGEST:
        raise DataError(f"{path}: {member.name} has {member.size} bytes; expected a label")
    file.seek(member.offset_data)
    try:
        text: str = file.read(member.size).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: {member.name} is not UTF-8 text (byte {error.start})") from None
    return text.strip()


def _row(said: dict[str, str], place: str) -> dict[str, Any]:
    """The values that the sidecars of a sample give."""
    row: dict[str, Any] = {}
    if "json" in said:
        value = parse_json(said["json"], f"{place}: its .json", DataError)
        row |= value if isinstance(value, dict) else {"label": value}
        row.pop("split", None)  # a shard is of one split, which its folder or name tells
    if "txt" in said:
        row["txt"] = said["txt"]
    if "cls" in said:
        row["label"] = said["cls"]
    return row


def _class_folders(
    path: Path, members: list[tarfile.TarInfo], options: DataOptions, notes: list[str]
) -> Raw:
    """A tar of class folders; of pictures anywhere, where no label is wanted."""
    raw, ignored, labelled = Raw(), 0, options.target == "label"
    for member in members if options.target != "mask" else ():
        name = PurePosixPath(member.name)
        if name.suffix.lower() not in IMAGE_SUFFIXES or (labelled and len(name.parts) < 2):
            ignored += 1
            continue
        label = name.parts[-2] if labelled else ()
        raw.add(_slice(path, member), label, f"{path}:{member.name}")
    if not raw.images:
        raise DataError(f"{path} holds no images{EXPECTED[options.target]}")
    if ignored:
        notes.append(
            f"{ignored} members of {path} are not images{' in class folders' * labelled} and are"
            " left alone"
        )
    return raw
