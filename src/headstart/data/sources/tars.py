"""Tars: class folders in a tar, and WebDataset shards, whose members `000017.jpg`, `000017.cls`,
`000017.json` are one sample.

Nothing is unpacked: images are read in place when they are needed, and a member whose name leads
outside is refused.
"""

import re
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from headstart.checkpoint.documents import decode_text, parse_json
from headstart.data.options import DataOptions
from headstart.data.sources.raw import (
    IMAGE_SUFFIXES,
    LARGEST_FILE,
    MASK_NAMES,
    RawTable,
    Slice,
    is_hidden,
)
from headstart.data.storage import is_uri, open_storage
from headstart.errors import DataError

SIDECARS = ("cls", "json", "txt")  # what a sample of a WebDataset may hold about its image
LARGEST = 1 << 20  # bytes of a sidecar
MAX_SHARDS = 100_000
EXPECTED = {
    "label": " in class folders; expected members like CLASS/image.jpg, or 0.jpg and 0.cls",
    "mask": " with masks; expected members like 0.jpg and 0.mask.png",
    "none": "",
}
BRACES = re.compile(r"\{([0-9]{1,18})\.\.([0-9]{1,18})\}")

Sample = list[tuple[str, tarfile.TarInfo]]  # kind ("v1.png", "cls") and member


def expand(path: Path) -> list[Path]:
    """The files that `shard-{0000..0003}.tar` stands for; a path without braces is itself.

    Raises:
        DataError: A range counts down, or there are more than 100,000 files.
    """
    return [path] if path.exists() else [Path(name) for name in expand_name(str(path))]


def expand_name(path: str) -> list[str]:
    """As `expand`, of paths and URIs that are not looked for."""
    text, count = path, 1
    for first, last in BRACES.findall(text):
        if int(last) < int(first):
            raise DataError(f"{path}: {{{first}..{last}}} counts down; the lower number is first")
        count *= int(last) - int(first) + 1
        if count > MAX_SHARDS:
            raise DataError(f"{path} stands for more than {MAX_SHARDS:,} files; name fewer shards")
    found = [""]
    position = 0
    for match in BRACES.finditer(text):
        width = len(match[1]) if match[1].startswith("0") else 0
        numbers = range(int(match[1]), int(match[2]) + 1)
        between = text[position : match.start()]
        found = [f"{each}{between}{number:0{width}d}" for each in found for number in numbers]
        position = match.end()
    return [each + text[position:] for each in found]


def read_tar(path: Path, options: DataOptions) -> RawTable:
    """The images of a plain tar and what they are labelled.

    It is a WebDataset where an image has a sidecar (or a mask), class folders else.

    Raises:
        DataError: No such tar, or no images in it.
    """
    try:
        with tarfile.open(path, "r:") as tar:
            members = sorted((m for m in tar if m.isfile()), key=lambda m: m.name)
    except (tarfile.TarError, EOFError, ValueError, OverflowError) as error:
        raise DataError(f"{path} is not a plain (uncompressed) tar: {error}") from None
    for member in members:
        _refuse_outside(path, member.name)
    members = [m for m in members if not any(map(is_hidden, PurePosixPath(m.name).parts))]
    samples = _samples(path, members)
    about = _is_mask if options.target == "mask" else _is_sidecar
    for sample in samples.values():
        kinds = [kind for kind, _ in sample]
        if any(map(about, kinds)) and any(map(_is_image, kinds)):
            return _sample_table(path, samples, options)
    return _class_folders(path, members, options)


def _refuse_outside(path: Path, name: str) -> None:
    parts = PurePosixPath(name).parts
    if name.startswith("/") or "\\" in name or ".." in parts or not parts:
        raise DataError(
            f"{path}: the member {name!r} leads outside the tar; such a tar is not read"
        )


def _is_image(kind: str) -> bool:
    return f".{kind.rpartition('.')[2]}" in IMAGE_SUFFIXES and not _is_mask(kind)


def _is_mask(kind: str) -> bool:
    *names, suffix = kind.split(".")
    return f".{suffix}" in IMAGE_SUFFIXES and any(name in MASK_NAMES for name in names)


def _is_sidecar(kind: str) -> bool:
    return kind.rpartition(".")[2] in SIDECARS


def _samples(path: Path, members: list[tarfile.TarInfo]) -> dict[str, Sample]:
    """Members by sample: names are cut at the first dot of their last part.

    Where that puts two images into one sample, they are cut at the last dot.
    """
    found: dict[str, Sample] = {}
    for cut in (str.partition, str.rpartition):
        found = {}
        for member in members:
            *parents, last = PurePosixPath(member.name).parts
            stem, _, kind = cut(last, ".")
            found.setdefault("/".join((*parents, stem)), []).append((kind.lower(), member))
        images = (sum(_is_image(kind) for kind, _ in sample) for sample in found.values())
        if max(images, default=0) <= 1:
            break
    return found


def _sample_table(path: Path, samples: dict[str, Sample], options: DataOptions) -> RawTable:
    """The samples of a shard.

    `image`, `label` (cls), the values of the JSON object, `txt`; or `image` and its masks.
    """
    rows: list[dict[str, Any]] = []
    places: list[str] = []
    notes: list[str] = []
    with path.open("rb") as file:
        for key, sample in samples.items():
            images = [member for kind, member in sample if _is_image(kind)]
            kinds = [kind if _is_mask(kind) else kind.rpartition(".")[2] for kind, _ in sample]
            kinds = [kind for kind in kinds if _is_mask(kind) or kind in SIDECARS]
            if not images:
                continue
            if len(images) > 1 or len(set(kinds)) < len(kinds):
                raise DataError(
                    f"{path}: sample {key} has members {', '.join(kind for kind, _ in sample)};"
                    " expected one image and one of each kind"
                )
            if options.target == "mask":
                row = {
                    next(n for n in kind.split(".") if n in MASK_NAMES): _slice(path, member)
                    for kind, member in sample
                    if _is_mask(kind)
                }
            else:
                row = _labels(file, path, sample, images[0].name)
            rows.append(row | {"image": _slice(path, images[0])})
            places.append(images[0].name)
    if len(rows) < len(samples):
        left = len(samples) - len(rows)
        notes.append(f"{left} samples of {path} have no image and are left alone")
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = {name: [row.get(name) for row in rows] for name in names}
    return RawTable(path, columns, "member", places, "image", notes=notes)


def _slice(path: Path, member: tarfile.TarInfo) -> Slice:
    return Slice(path, member.offset_data, member.size)


def _labels(file: BinaryIO, path: Path, sample: Sample, image: str) -> dict[str, Any]:
    """The values that the sidecars of a sample hold."""
    found: dict[str, tuple[str, bytes]] = {}
    for kind in SIDECARS:
        member = next((m for each, m in sample if each.rpartition(".")[2] == kind), None)
        if member is not None:
            _refuse_large(path, member)
            file.seek(member.offset_data)
            found[kind] = (member.name, file.read(member.size))
    return _row_of(str(path), found, image)


def _refuse_large(path: str | Path, member: tarfile.TarInfo) -> None:
    if member.size > LARGEST:
        raise DataError(f"{path}: {member.name} has {member.size} bytes; expected a label")


def _row_of(path: str, sidecars: Mapping[str, tuple[str, bytes]], image: str) -> dict[str, Any]:
    """The values of the sidecars of an image: name and content by kind."""
    row: dict[str, Any] = {}
    for kind in SIDECARS[::-1]:  # cls is the label whatever the others hold
        if kind not in sidecars:
            continue
        name, content = sidecars[kind]
        text = decode_text(content, f"{path}: {name}", DataError).strip()
        if kind == "json":
            value = parse_json(text, f"{path}:{image}: its .json", DataError)
            row |= value if isinstance(value, dict) else {"label": value}
            row.pop("split", None)  # a shard is of one split, which its folder or name tells
        else:
            row["label" if kind == "cls" else "txt"] = text
    return row


def _class_folders(path: Path, members: list[tarfile.TarInfo], options: DataOptions) -> RawTable:
    """A tar of class folders; of images anywhere, where no label is wanted."""
    labelled = options.target == "label"
    columns: dict[str, list[Any]] = {"image": [], "label": []}
    places: list[str] = []
    for member in members if options.target != "mask" else ():
        name = PurePosixPath(member.name)
        if name.suffix.lower() in IMAGE_SUFFIXES and (len(name.parts) > 1 or not labelled):
            columns["image"].append(_slice(path, member))
            columns["label"].append(name.parts[-2] if labelled else "")
            places.append(f"{path}:{member.name}")
    if not places:
        raise DataError(f"{path} holds no images{EXPECTED[options.target]}")
    table = RawTable(path, columns, "", places, "image", ("label",) if labelled else ())
    if len(places) < len(members):
        where = " in class folders" * labelled
        left = len(members) - len(places)
        table.notes.append(f"{left} members of {path} are not images{where} and are left alone")
    return table


# Streams ------------------------------------------------------------------------------------------


@dataclass
class Streamed:
    """A sample of a shard that is read from front to back.

    Args:
        name: Name of its image in the tar; number of its row in a table.
        row: Its cells: the image, as bytes or a part of a local file, and what its sidecars hold.
        end: Bytes of the shard up to the end of the sample, about.
    """

    name: str | int
    row: dict[str, Any]
    end: int


@dataclass
class _Open:
    """A sample that may have more members."""

    key: str
    image: str = ""
    source: bytes | Slice = b""
    sidecars: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    end: int = 0

    def closed(self, shard: str) -> Streamed | None:
        """The sample, or None where it has no image."""
        if not self.image:
            return None
        row = _row_of(shard, self.sidecars, self.image)
        parents = PurePosixPath(self.image).parts[:-1]
        if not self.sidecars and parents:  # a class folder
            row["label"] = parents[-1]
        return Streamed(self.image, row | {"image": self.source}, self.end)


def stream_tar(shard: str, first: int = 0) -> Iterator[Streamed]:
    """The samples of a tar from front to back; of each the image, and its label in sidecars or the
    name of its folder.

    Args:
        shard: Path or URI. Of a local file only the headers and labels are read here.
        first: Samples that are passed over.

    Raises:
        DataError: It is not such a tar.
        OSError: It cannot be read.
    """
    storage, path = open_storage(shard)
    try:
        if is_uri(shard):
            with (
                storage.open_input_stream(path) as file,
                tarfile.open(fileobj=file, mode="r|") as tar,
            ):
                yield from _streamed(shard, tar, None, first)
        else:
            with tarfile.open(path, mode="r:") as tar:
                yield from _streamed(shard, tar, Path(path), first)
    except (tarfile.TarError, EOFError, ValueError, OverflowError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{shard} is not a plain (uncompressed) tar: {error}") from None


def _streamed(
    shard: str, tar: tarfile.TarFile, local: Path | None, first: int
) -> Iterator[Streamed]:
    found, count = _Open(""), 0
    for member in tar:
        if not member.isfile():
            continue
        _refuse_outside(Path(shard), member.name)
        *parents, last = PurePosixPath(member.name).parts
        if any(map(is_hidden, (*parents, last))):
            continue
        stem, _, kind = last.partition(".")
        key, kind = "/".join((*parents, stem)), kind.lower()
        if key != found.key:
            sample = found.closed(shard)
            if sample is not None:
                count += 1
                if count > first:
                    yield sample
            found = _Open(key)
        _add(shard, found, kind, member, tar, local)
        tar.members = []  # type: ignore[attr-defined]  # tarfile keeps every header, documented nowhere
    sample = found.closed(shard)
    if sample is not None and count >= first:
        yield sample


def _add(
    shard: str,
    sample: _Open,
    kind: str,
    member: tarfile.TarInfo,
    tar: tarfile.TarFile,
    local: Path | None,
) -> None:
    """Adds a member to its sample."""
    sample.end = member.offset_data + member.size
    if _is_sidecar(kind):
        _refuse_large(shard, member)
        data = tar.extractfile(member)
        assert data is not None
        sample.sidecars[kind.rpartition(".")[2]] = (member.name, data.read())
    elif _is_image(kind):
        if sample.image:
            raise DataError(
                f"{shard}: {sample.image} and {member.name} are of one sample; expected one image"
                " for each name up to its first dot"
            )
        sample.image = member.name
        if local is not None:
            sample.source = _slice(local, member)
        else:
            data = tar.extractfile(member)
            assert data is not None
            sample.source = data.read(LARGEST_FILE)
