"""Entries of a zip archive in place.

Torch's checkpoints and NumPy's .npz are zips whose entries are (mostly) stored as they are.
"""

import zipfile
import zlib
from pathlib import Path
from typing import Any

from headstart.checkpoint.raw import Budget
from headstart.errors import FileFormatError

# bytes before the name: https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT §4.3.7
LOCAL_HEADER = 30


def entries(path: Path) -> dict[str, zipfile.ZipInfo]:
    """Every entry of the archive by name."""
    try:
        with zipfile.ZipFile(path) as archive:
            infos = [info for info in archive.infolist() if not info.is_dir()]
    except (
        zipfile.BadZipFile,
        ValueError,
        IndexError,
        NotImplementedError,
        OverflowError,
    ) as error:
        raise FileFormatError(
            f"{path} is a damaged or cut off zip archive ({error}); download it again"
        ) from error
    by_name = {info.filename: info for info in infos}
    if len(by_name) != len(infos):
        raise FileFormatError(f"{path} has two entries of one name")
    budget, stop = Budget(path, path.stat().st_size), 0
    for info in sorted(infos, key=lambda info: info.header_offset):
        budget.entry(info.filename)
        if info.header_offset < stop:
            raise FileFormatError(f"{path}: {info.filename:.80} overlaps another entry")
        stop = info.header_offset + LOCAL_HEADER + info.compress_size
        if info.compress_type != zipfile.ZIP_STORED:
            budget.memory(info.file_size, f"{info.filename:.80}, unpacked,")
    return by_name


def span(path: Path, data: Any, info: zipfile.ZipInfo) -> tuple[int, int]:
    """First byte of an entry in the file, and the byte after its last."""
    where = f"{path}: {info.filename}"
    head = info.header_offset
    local = (
        bytes(data[head : head + LOCAL_HEADER]) if 0 <= head <= len(data) - LOCAL_HEADER else b""
    )
    if local[:4] != b"PK\x03\x04" or info.flag_bits & 0x1:
        raise FileFormatError(f"{where} is encrypted or does not lie where the archive says")
    start = (
        head
        + LOCAL_HEADER
        + int.from_bytes(local[26:28], "little")
        + int.from_bytes(local[28:30], "little")
    )
    stop = start + info.compress_size
    if stop > len(data) or (
        info.compress_type == zipfile.ZIP_STORED and info.compress_size != info.file_size
    ):
        raise FileFormatError(
            f"{where} does not lie where the archive says: the file is cut off or damaged"
        )
    return start, stop


def unpack(path: Path, data: Any, info: zipfile.ZipInfo) -> tuple[Any, int, int]:
    """The bytes of an entry as (buffer, start, stop), once their checksum is right.

    In place where it is stored, in new memory where it is deflated.
    """
    start, stop = span(path, data, info)
    if info.compress_type == zipfile.ZIP_STORED:
        if zlib.crc32(memoryview(data)[start:stop]) != info.CRC:
            raise FileFormatError(
                f"{path}: {info.filename} is damaged: its checksum is wrong; download or copy the"
                " file again (or save it with torch.serialization.set_crc32_options(True))"
            )
        return data, start, stop
    if info.compress_type != zipfile.ZIP_DEFLATED:
        raise FileFormatError(
            f"{path}: {info.filename} is packed by method {info.compress_type}; only stored and"
            " deflated are read"
        )
    try:
        inflate = zlib.decompressobj(-zlib.MAX_WBITS)
        out = bytearray(inflate.decompress(data[start:stop], info.file_size + 1))
    except zlib.error as error:
        raise FileFormatError(f"{path}: {info.filename} is damaged: {error}") from error
    if len(out) != info.file_size or zlib.crc32(out) != info.CRC:
        raise FileFormatError(
            f"{path}: {info.filename} is damaged: it does not unpack to what the archive says"
        )
    return out, 0, len(out)
