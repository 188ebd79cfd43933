"""One file from an http(s) address to the disk.

Resumed after a break, never a half file taken for a whole one.
"""

import contextlib
import hashlib
import http.client
import logging
import os
import re
import shutil
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from email.message import Message
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, NoReturn
from urllib.parse import quote, urlsplit

from headstart.errors import (
    AuthError,
    DownloadError,
    HubError,
    InputError,
    NotFoundError,
    OfflineError,
)
from headstart.progress import write_line

log = logging.getLogger(__name__)

CHUNK = 1 << 20
TIMEOUT = 30.0  # seconds without a byte
TRIES = 6  # in a row without a new byte
FIRST_WAIT = 1.0  # seconds; doubled after every failure
LONGEST_WAIT = 60.0  # a server that asks for more is not waited for
BUSY = frozenset({408, 425, 429, 500, 502, 503, 504})


@dataclass(frozen=True)
class Download:
    """A file at its authors' address.

    Attributes:
        url: The address.
        size: Its bytes, where known.
        sha256: Its hash, where known.
    """

    url: str
    size: int | None = None
    sha256: str | None = None


def is_true(variable: str) -> bool:
    """Whether an environment variable is switched on, read as huggingface_hub does."""
    return os.environ.get(variable, "").upper() in ("1", "ON", "YES", "TRUE")


def download(
    source: Download, *, cache_dir: str | Path | None = None, local_files_only: bool = False
) -> Path:
    """A file from its authors' address, from the cache if it is there.

    A transfer that breaks is resumed, now and in the next run. The file appears under its name only
    once it is whole: its size, and its hash where one is known, are right.

    Args:
        source: Address, size and hash.
        cache_dir: Folder of the cache; HF_HOME decides if None.
        local_files_only: Do not use the network.

    Raises:
        OfflineError, AuthError, NotFoundError, DownloadError: Not cached and not to be had; the
        message says why.
    """
    parts = urlsplit(source.url)
    check_address(source.url)
    path = (
        _authors_cache(cache_dir)
        / quote(parts.netloc, safe=".")
        / quote(parts.path.strip("/") + parts.query, safe="/._-")
    )
    if ".." in path.parts:
        raise InputError(f"{source.url!r} is not an address of a file")
    if path.is_file() and source.size in (None, path.stat().st_size):
        return path
    if local_files_only or is_true("HF_HUB_OFFLINE"):
        raise OfflineError(
            f"{source.url} is not in the cache {path.parent}, and HF_HUB_OFFLINE or"
            " local_files_only forbids the network"
        )
    return fetch(source, path, {}, path.name)


def check_address(url: str) -> None:
    """Raises InputError unless an address is http or https."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise InputError(f"{url!r:.200} is not an http(s) address")


def _authors_cache(cache_dir: str | Path | None) -> Path:
    if cache_dir is not None:
        return Path(cache_dir).expanduser() / "headstart"
    general = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    return Path(os.environ.get("HF_HOME") or general / "huggingface").expanduser() / "headstart"


def fetch(source: Download, path: Path, headers: dict[str, str], shown: str) -> Path:
    """Downloads to `path`.

    Into `path.partial` first, under a lock, so that two processes do not fetch the same file twice.
    """
    from filelock import FileLock

    check_address(source.url)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            if not (path.is_file() and source.size in (None, path.stat().st_size)):
                _transfer(source, path, headers, shown)
    except HubError:
        raise
    except OSError as error:
        raise DownloadError(f"cannot write {path} ({error}){_room(path, source.size)}") from error
    return path


def _room(path: Path, needed: int | None) -> str:
    free = shutil.disk_usage(path.parent).free if path.parent.exists() else 0
    return f"; needed: {f'{needed:,}' if needed else 'unknown'} bytes, free: {free:,}"


class _Broken(Exception):
    """A transfer that is worth another try.

    Attributes:
        wait: Seconds that the server asks for, if it does.
    """

    def __init__(self, why: str, wait: float | None = None) -> None:
        super().__init__(why)
        self.wait = wait


def _transfer(source: Download, path: Path, headers: dict[str, str], shown: str) -> None:
    partial, tag = path.with_name(f"{path.name}.partial"), path.with_name(f"{path.name}.etag")
    failures, best = 0, partial.stat().st_size if partial.exists() else 0
    while True:
        try:
            _stream(source, partial, tag, headers, shown)
            break
        except _Broken as broken:
            here = partial.stat().st_size if partial.exists() else 0
            failures = 1 if here > best else failures + 1
            best = max(best, here)
            wait = broken.wait if broken.wait is not None else FIRST_WAIT * 2 ** (failures - 1)
            if failures >= TRIES or wait > LONGEST_WAIT:
                kept = (
                    f"; the {here:,} bytes that came are kept apart for the next try"
                    if here
                    else ""
                )
                pause = f"; the server asks to wait {wait:.0f} s" if wait > LONGEST_WAIT else ""
                raise DownloadError(
                    f"fetching {source.url} failed: {broken}{kept}{pause}"
                ) from broken
            log.info("%s; trying again in %.1f s", broken, wait)
            time.sleep(wait)
    _verify(source, partial, tag)
    partial.replace(path)
    tag.unlink(missing_ok=True)


def _verify(source: Download, partial: Path, tag: Path) -> None:
    if source.sha256 is None:
        return
    with partial.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != source.sha256:
        partial.unlink()
        tag.unlink(missing_ok=True)
        raise DownloadError(
            f"{source.url} has the SHA-256 {found}, expected {source.sha256}; it was thrown away"
        )


def _stream(
    source: Download, partial: Path, tag: Path, headers: dict[str, str], shown: str
) -> None:
    """One request: goes on from the end of `partial`, if the server still has the same file."""
    have = partial.stat().st_size if partial.exists() else 0
    if source.size is not None and have == source.size:
        return
    known = tag.read_text() if tag.exists() else ""
    # Without a hash, only the server's tag tells that the rest belongs to the same file.
    if have and (not (known or source.sha256) or (source.size is not None and have > source.size)):
        have = 0
    request = urllib.request.Request(
        source.url, headers={"User-Agent": "headstart", "Accept-Encoding": "identity"}
    )
    for key, value in headers.items():
        request.add_unredirected_header(key, value)
    if have:
        request.add_header("Range", f"bytes={have}-")
        if known:
            request.add_header("If-Range", known)
    with _answer(request, source, partial, tag) as response:
        start = _start(response, have)
        total = _total(response, start)
        if source.size is not None and total not in (None, source.size):
            raise DownloadError(
                f"{source.url} has {total:,} bytes, expected {source.size:,}: it is another file"
                " than the published one"
            )
        if source.size is None and total is None and not response.chunked:
            raise DownloadError(
                f"the server of {source.url} does not say how long the file is, so half of it would"
                " look whole"
            )
        needed = (source.size or total or 0) - start
        if needed > shutil.disk_usage(partial.parent).free:
            raise DownloadError(
                f"no room for {shown} in {partial.parent}{_room(partial, needed)}; make room or set"
                " HF_HOME elsewhere"
            )
        etag = response.headers.get("ETag", "")
        # a weak tag does not promise equal bytes
        tag.write_text("" if etag.startswith("W/") else etag)
        with partial.open("ab" if start else "wb") as file:
            _copy(response, file, source, shown, start, source.size or total)
            os.fsync(file.fileno())


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to other http(s) addresses, and never from https to http."""

    def redirect_request(
        self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> Any:
        if urlsplit(newurl).scheme not in ("https", urlsplit(req.full_url).scheme):
            raise DownloadError(
                f"{req.full_url} redirects to {newurl:.200}, which is not followed: only http(s)"
                " is, and never from https to http"
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


@cache
def _opener() -> urllib.request.OpenerDirector:
    """Opens http and https addresses alone; Python's default opener reads local files too."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.UnknownHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPErrorProcessor,
        _Redirects,
    ):
        opener.add_handler(handler())
    return opener


@contextlib.contextmanager
def _answer(
    request: urllib.request.Request, source: Download, partial: Path, tag: Path
) -> Iterator[http.client.HTTPResponse]:
    """The server's answer, or what its refusal means."""
    try:
        response = _opener().open(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        with error:
            _refused(error, source, partial, tag)
    except HubError:
        raise
    except (http.client.HTTPException, OSError) as error:
        raise _Broken(f"no connection ({getattr(error, 'reason', error)})") from error
    with response:
        yield response


def _refused(error: urllib.error.HTTPError, source: Download, partial: Path, tag: Path) -> NoReturn:
    if error.code == 416:  # the part that we have does not fit the file that the server has
        partial.unlink(missing_ok=True)
        tag.unlink(missing_ok=True)
        raise _Broken("the file has changed") from error
    if error.code in (401, 403):
        raise AuthError(
            f"{source.url} is refused ({error.code}); the authors may have closed the address"
        ) from error
    if error.code in (404, 410):
        raise NotFoundError(f"{source.url} does not exist any more ({error.code})") from error
    if error.code in BUSY:
        raise _Broken(f"the server answered {error.code}", _wait_asked(error.headers)) from error
    raise DownloadError(f"{source.url}: the server answered {error.code} {error.reason}") from error


def _wait_asked(headers: Message) -> float | None:
    """Seconds that a busy server asks to wait: Retry-After holds seconds or a date; the Hub tells
    what is left (r) of a quota and when it begins again (t), as in `"resolvers";r=0;t=52`.
    """
    quota = re.search(r";\s*r=0\s*;\s*t=(\d+)", headers.get("RateLimit", ""))
    if quota:
        return float(quota[1])
    value = headers.get("Retry-After")
    if not value:
        return None
    if value.strip().isdecimal():
        return float(value)
    from email.utils import parsedate_to_datetime

    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None


def _start(response: http.client.HTTPResponse, have: int) -> int:
    """The byte at which the answer begins: a server may ignore that only the rest was wanted."""
    if response.status != 206:
        return 0
    span = response.headers.get("Content-Range", "").removeprefix("bytes ")
    if span.partition("-")[0] != str(have):
        raise DownloadError(
            f"the server sent bytes {span!r} where those from {have} on were asked for"
        )
    return have


def _total(response: http.client.HTTPResponse, start: int) -> int | None:
    length = response.headers.get("Content-Length")
    return start + int(length) if length and length.isdecimal() else None


def _copy(
    response: http.client.HTTPResponse,
    file: BinaryIO,
    source: Download,
    shown: str,
    start: int,
    total: int | None,
) -> None:
    with _progress(shown, start, total) as progress:
        here = start
        while True:
            try:
                chunk = response.read(CHUNK)
            except (http.client.HTTPException, OSError) as error:
                raise _Broken(f"the connection broke after {here:,} bytes") from error
            if not chunk:
                break
            file.write(chunk)
            here += len(chunk)
            progress(len(chunk))
            if total is not None and here > total:
                raise DownloadError(
                    f"{source.url} sends more than the {total:,} bytes it should have"
                )
    if total is not None and here != total:
        raise _Broken(f"the connection broke after {here:,} of {total:,} bytes")


@contextlib.contextmanager
def _progress(shown: str, start: int, total: int | None) -> Iterator[Any]:
    """A bar with rate and time left on a terminal, two plain lines elsewhere.

    HF_HUB_DISABLE_PROGRESS_BARS silences both.
    """
    if is_true("HF_HUB_DISABLE_PROGRESS_BARS"):
        yield lambda count: None
    elif sys.stderr.isatty():
        from tqdm import tqdm  # type: ignore[import-untyped]

        with tqdm(desc=shown, initial=start, total=total, unit="B", unit_scale=True) as bar:
            yield bar.update
    else:
        size = f"{total / 1e6:,.1f} MB" if total else "unknown size"
        write_line(f"downloading {shown} ({size})", sys.stderr)
        yield lambda count: None
        write_line(f"downloaded {shown}", sys.stderr)
