"""Downloads of single files: resumed, checked, refused, and shared by processes."""

import errno
import hashlib
import io
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from headstart.errors import AuthError, DownloadError, InputError, NotFoundError
from headstart.hub import download as fetch
from headstart.hub.download import Download, download
from headstart.hub.resolve import resolve_weights
from hub_files import RNG, same_weights, saved
from hub_server import HubServer


def authors_file(server: HubServer, size: int = 5000) -> tuple[Download, bytes]:
    data = RNG.integers(0, 256, size, dtype=np.uint8).tobytes()
    server.plain["BiT-M-R50x1.npz"] = data
    return (
        Download(f"{server.url}/files/BiT-M-R50x1.npz", size, hashlib.sha256(data).hexdigest()),
        data,
    )


def test_an_authors_file_is_fetched_once(server, tmp_path):
    source, data = authors_file(server)
    path = download(source)
    assert path.read_bytes() == data
    assert path.name == "BiT-M-R50x1.npz"
    assert path.is_relative_to(tmp_path / "home")
    assert download(source) == path
    assert server.count("GET", "/files/") == 1
    assert download(source, cache_dir=tmp_path / "mine").is_relative_to(tmp_path / "mine")


@pytest.mark.parametrize("known", [True, False], ids=["hash known", "nothing known"])
def test_an_authors_file_is_resumed_byte_for_byte(server, known, slept):
    source, data = authors_file(server)
    if not known:
        source = Download(source.url)
    server.fail("GET", "/files/", drop_after=1234)
    server.fail("GET", "/files/", status=503)
    server.fail("GET", "/files/", drop_after=1000)
    assert download(source).read_bytes() == data
    assert [span for _, _, span in server.requests] == [
        None,
        "bytes=1234-",
        "bytes=1234-",
        "bytes=2234-",
    ]
    assert len(slept) == 3


def test_a_file_that_changed_meanwhile_is_not_spliced(server):
    source, _ = authors_file(server)
    source = Download(source.url)
    server.fail("GET", "/files/", drop_after=1234)
    server.fail("GET", "/files/", status=503, times=99)
    with pytest.raises(DownloadError):
        download(source)
    server.faults.clear()
    _, changed = authors_file(server)
    assert download(source).read_bytes() == changed


def test_a_server_that_cannot_resume_sends_all_again(server):
    source, data = authors_file(server)
    server.fail("GET", "/files/", drop_after=1234)
    server.fail("GET", "/files/", ignore_range=True)
    assert download(source).read_bytes() == data


def test_a_part_that_is_too_long_is_begun_again(server):
    source, data = authors_file(server)
    path = download(source)
    path.rename(f"{path}.partial")
    with Path(f"{path}.partial").open("ab") as file:
        file.write(b"more")
    assert download(source).read_bytes() == data
    path.unlink()
    Path(f"{path}.partial").write_bytes(b"x" * 9000)
    assert download(Download(source.url)).read_bytes() == data


def test_a_whole_file_of_the_wrong_size_is_another_file(server):
    source, data = authors_file(server)
    with pytest.raises(DownloadError, match=r"5,000 bytes, expected 6,000"):
        download(Download(source.url, 6000))
    assert not list(Path(os.environ["HF_HOME"]).rglob("*.npz"))


def test_a_server_that_announces_too_much_ends_in_an_error(server):
    source, _ = authors_file(server)
    server.fail("GET", "/files/", lie=10, times=99)
    with pytest.raises(DownloadError, match="failed"):
        download(Download(source.url))
    assert not list(Path(os.environ["HF_HOME"]).rglob("*.npz"))


def test_a_file_of_unknown_length_is_taken_only_where_its_size_is_known(server):
    source, data = authors_file(server)
    server.fail("GET", "/files/", no_length=True, drop_after=1000)
    with pytest.raises(DownloadError, match="how long"):
        download(Download(source.url))
    server.fail("GET", "/files/", no_length=True, drop_after=1000)
    assert download(source).read_bytes() == data


def test_a_server_that_never_stops_is_stopped(server):
    source, _ = authors_file(server)
    server.fail("GET", "/files/", no_length=True)
    with pytest.raises(DownloadError, match="more than the 4,000 bytes"):
        download(Download(source.url, 4000))


def test_two_at_once_fetch_once(server):
    source, data = authors_file(server, 300_000)
    with ThreadPoolExecutor(4) as pool:
        assert {path.read_bytes() for path in pool.map(download, [source] * 4)} == {data}
    assert server.count("GET", "/files/") == 1


def test_a_wrong_hash_is_thrown_away(server):
    source, _ = authors_file(server)
    with pytest.raises(DownloadError, match="SHA-256"):
        download(Download(source.url, source.size, "0" * 64))
    assert not [
        path for path in Path(os.environ["HF_HOME"]).rglob("*.npz*") if path.suffix != ".lock"
    ]


@pytest.mark.parametrize(
    "status, kind",
    [
        (401, AuthError),
        (403, AuthError),
        (404, NotFoundError),
        (410, NotFoundError),
        (400, DownloadError),
    ],
)
def test_refusals_are_not_tried_again(server, status, kind):
    source, _ = authors_file(server)
    server.fail("GET", "/files/", status=status, times=99)
    with pytest.raises(kind, match=str(status)):
        download(source)
    assert server.count("GET", "/files/") == 1


def test_a_server_is_waited_for_as_long_as_it_asks(server, slept):
    source, data = authors_file(server)
    server.fail("GET", "/files/", status=429, headers={"Retry-After": "7"})
    assert download(source).read_bytes() == data
    assert slept == [7.0]


def test_a_server_that_asks_for_an_hour_is_not_waited_for(server, slept):
    source, _ = authors_file(server)
    server.fail("GET", "/files/", status=429, headers={"Retry-After": "3600"})
    with pytest.raises(DownloadError, match="3600 s"):
        download(source)
    assert not slept


def test_nobody_there(slept, tmp_path, monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with pytest.raises(DownloadError, match="no connection"):
        download(Download("http://127.0.0.1:9/a.npz"), cache_dir=tmp_path)
    assert len(slept) == fetch.TRIES - 1


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "ftp://x/y", "nowhere", "http://x/a/../../../b"]
)
def test_only_http_addresses(url, tmp_path):
    with pytest.raises(InputError):
        download(Download(url), cache_dir=tmp_path)


def test_a_full_disk_is_reported_before_the_transfer(server, monkeypatch):
    source, _ = authors_file(server)
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=100))
    with pytest.raises(DownloadError, match=r"needed: 5,000 bytes, free: 100"):
        download(source)


class FullDisk(io.FileIO):
    """A file on a disk that is full after 3,000 bytes."""

    def write(self, data) -> int:
        if self.tell() + len(data) > 3000:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(data)


@pytest.mark.parametrize("what", ["authors", "hub"])
def test_a_disk_that_fills_up_leaves_no_half_file(server, monkeypatch, tmp_path, what):
    source, data = authors_file(server)
    server.add("o/m", saved(tmp_path))
    plain = Path.open
    opened = []

    def full(path: Path, mode: str = "r", *rest, **options):
        if path.suffix != ".partial":
            return plain(path, mode, *rest, **options)
        opened.append(path)
        return FullDisk(path, mode)

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(DownloadError, match="No space left"):
        download(source) if what == "authors" else resolve_weights("o/m")
    assert opened
    monkeypatch.setattr(Path, "open", plain)
    assert not list(Path(os.environ["HF_HOME"]).rglob("*.npz"))
    assert not list(Path(os.environ["HF_HOME"]).rglob("*.safetensors"))
    assert download(source).read_bytes() == data
    same_weights(resolve_weights("o/m"))


def test_size_is_shown_before_the_bytes_come(server, monkeypatch, capsys):
    monkeypatch.delenv("HF_HUB_DISABLE_PROGRESS_BARS")
    source, _ = authors_file(server, 123_456)
    download(source)
    assert (
        capsys.readouterr().err
        == "downloading BiT-M-R50x1.npz (0.1 MB)\ndownloaded BiT-M-R50x1.npz\n"
    )
