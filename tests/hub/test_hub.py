"""Names become files.

From folders, from a Hub, from authors' addresses, whatever goes wrong on the way.
"""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from headstart.errors import (
    AuthError,
    DownloadError,
    FileFormatError,
    InputError,
    NotFoundError,
    OfflineError,
)
from headstart.hub.download import Download, download
from headstart.hub.push import push_to_hub
from headstart.hub.resolve import resolve_file, resolve_weights
from hub_files import same_weights, saved
from hub_server import conversion


def test_a_folder_and_a_file_are_their_own_answer(tmp_path):
    saved(tmp_path)
    assert resolve_file(str(tmp_path), "config.json") == tmp_path / "config.json"
    assert resolve_file(tmp_path / "model.safetensors", "config.json") == tmp_path / "config.json"
    assert resolve_weights(tmp_path) == tmp_path / "model.safetensors"
    assert resolve_weights(tmp_path / "model.safetensors") == tmp_path / "model.safetensors"
    assert resolve_file(tmp_path, "nothing.json", optional=True) is None


@pytest.mark.parametrize(
    "name", ["./no/folder", "/no/folder", "no/such/folder", "~/no folder", Path("gone")]
)
def test_a_missing_path_is_not_requested_from_the_hub(name, server):
    with pytest.raises(NotFoundError, match="no file or folder"):
        resolve_weights(name)
    assert not server.requests


def test_a_mistyped_folder_is_not_asked_for_on_the_hub(tmp_path, monkeypatch, server):
    (tmp_path / "runs" / "photos").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NotFoundError, match=r"'runs/phtos'; did you mean 'runs/photos'\?"):
        resolve_weights("runs/phtos")
    assert not server.requests
    with pytest.raises(NotFoundError, match="on http"):
        resolve_weights("runs/other-model")
    assert server.requests


def test_a_folder_without_the_wanted_file_names_it(tmp_path):
    with pytest.raises(NotFoundError, match=r"has no config\.json"):
        resolve_file(tmp_path, "config.json")
    with pytest.raises(NotFoundError, match=r"tf_model\.h5"):
        resolve_weights(tmp_path, formats=("h5",))
    with pytest.raises(InputError, match="onnx"):
        resolve_weights(tmp_path, formats=("onnx",))


def test_h5_and_msgpack_come_only_when_requested(tmp_path):
    for name in ("tf_model.h5", "flax_model.msgpack"):
        (tmp_path / name).write_bytes(b"x")
    assert resolve_weights(tmp_path, formats=("safetensors", "h5")).name == "tf_model.h5"
    assert resolve_weights(tmp_path, formats=("msgpack",)).name == "flax_model.msgpack"
    with pytest.raises(NotFoundError):
        resolve_weights(tmp_path)


def test_a_model_of_the_hub_is_fetched_once(server, tmp_path):
    server.add("o/m", saved(tmp_path))
    path = resolve_weights("o/m")
    same_weights(path)
    assert resolve_file("o/m", "config.json").parent == path.parent
    assert server.count("GET", "/content/") == 1
    resolve_weights("o/m")
    assert server.count("GET", "/content/") == 1


def test_a_cached_model_costs_one_question_a_file(server, tmp_path):
    server.add("o/m", saved(tmp_path))
    resolve_file("o/m", "config.json")
    resolve_weights("o/m")
    before = server.count("HEAD", "/o/m/")
    resolve_file("o/m", "config.json")
    resolve_weights("o/m")
    assert server.count("HEAD", "/o/m/") == before + 2


def test_safetensors_are_preferred_and_bin_is_the_second_choice(server, tmp_path):
    files = saved(tmp_path)
    server.add("o/both", files | {"pytorch_model.bin": b"old"})
    server.add("o/old", {"config.json": b"{}", "pytorch_model.bin": b"old"})
    assert resolve_weights("o/both").name == "model.safetensors"
    assert resolve_weights("o/both", formats=("bin",)).name == "pytorch_model.bin"
    assert resolve_weights("o/old").name == "pytorch_model.bin"
    server.add("o/none", {"config.json": b"{}"})
    with pytest.raises(NotFoundError, match=r"no weights.*pytorch_model\.bin"):
        resolve_weights("o/none")


def test_all_shards_come_from_the_commit_of_their_index(server, tmp_path):
    server.add("o/s", saved(tmp_path, max_shard_size=2000))
    path = resolve_weights("o/s")
    assert path.name == "model.safetensors.index.json"
    assert sorted(each.name for each in path.parent.glob("*.safetensors")) == [
        f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)
    ]
    same_weights(path)
    commit = server.repos["o/s"].commit("main")
    assert all(f"/resolve/{commit}/" in path for _, path, _ in server.requests if "-of-" in path)


def test_an_index_cannot_ask_for_files_elsewhere(server):
    index = {"weight_map": {"a": "../../secret.safetensors"}}
    server.add("o/evil", {"model.safetensors.index.json": json.dumps(index).encode()})
    with pytest.raises(FileFormatError, match="secret"):
        resolve_weights("o/evil")


def test_a_missing_shard_is_named(server, tmp_path):
    files = saved(tmp_path, max_shard_size=2000)
    del files["model-00002-of-00003.safetensors"]
    server.add("o/s", files)
    with pytest.raises(NotFoundError, match="model-00002-of-00003"):
        resolve_weights("o/s")


def test_revisions(server, tmp_path):
    server.add("o/m", {"config.json": b"{}"})
    server.add("o/m", {"config.json": b'{"v": 2}'}, revision="v2")
    assert resolve_file("o/m", "config.json", revision="v2").read_bytes() == b'{"v": 2}'
    assert (
        resolve_file("o/m", "config.json", revision=server.repos["o/m"].commit("main")).read_bytes()
        == b"{}"
    )
    with pytest.raises(NotFoundError, match="no revision 'v3'"):
        resolve_file("o/m", "config.json", revision="v3")


@pytest.mark.parametrize("author, of, expected", [
    ("SFconvertbot", b"weights of today", "model.safetensors"),
    ("SFconvertbot", b"weights of last year", "pytorch_model.bin"),
    ("somebody", b"weights of today", "pytorch_model.bin"),
])  # fmt: skip
def test_a_conversion_is_used_only_from_the_bot_and_only_of_these_weights(
    server, tmp_path, author, of, expected
):
    server.add(
        "o/m",
        {"config.json": b"{}", "pytorch_model.bin": b"weights of today"},
        discussions=[conversion(3, author)],
    )
    server.add("o/m", saved(tmp_path) | {"pytorch_model.bin": of}, revision="refs/pr/3")
    assert resolve_weights("o/m").name == expected
    assert (
        resolve_weights("o/m", revision=server.repos["o/m"].commit("main")).name
        == "pytorch_model.bin"
    )


def test_tokens(server, monkeypatch):
    server.add("o/private", {"config.json": b"{}"}, token="right")
    with pytest.raises(NotFoundError, match=r"no model 'o/private'.*private.*token"):
        resolve_file("o/private", "config.json")
    with pytest.raises(AuthError, match="401"):
        resolve_file("o/private", "config.json", token="wrong")
    assert resolve_file("o/private", "config.json", token="right").read_bytes() == b"{}"
    monkeypatch.setenv("HF_TOKEN", "right")
    server.add("o/other", {"config.json": b"{}"}, token="right")
    assert resolve_file("o/other", "config.json").is_file()
    server.add("o/gated", {"config.json": b"{}"}, gated=True, token="member")
    with pytest.raises(AuthError, match="gated"):
        resolve_file("o/gated", "config.json")


def test_a_token_is_not_shown_to_the_content_server(server, tmp_path):
    server.add("o/private", saved(tmp_path), token="right")
    same_weights(resolve_weights("o/private", token="right"))
    shown = [
        token
        for (_, path, _), token in zip(server.requests, server.tokens, strict=True)
        if path.startswith("/content/")
    ]
    assert shown == [None]


def test_what_does_not_exist(server):
    with pytest.raises(NotFoundError, match="no model 'o/none'"):
        resolve_weights("o/none")
    with pytest.raises(NotFoundError, match="cannot be the id"):
        resolve_weights("two words")
    server.add("o/m", {"config.json": b"{}"})
    with pytest.raises(NotFoundError, match=r"no nope\.json"):
        resolve_file("o/m", "nope.json")
    assert resolve_file("o/m", "nope.json", optional=True) is None


@pytest.mark.parametrize("status", [403, 429, 500, 503])
def test_an_answer_with_an_error_is_never_taken_for_an_absent_file(server, status):
    server.add("o/m", {"config.json": b"{}"})
    resolve_file("o/m", "config.json")
    server.fail("HEAD", "preprocessor", status=status, times=99)
    with pytest.raises(AuthError if status == 403 else DownloadError, match=str(status)):
        resolve_file("o/m", "preprocessor_config.json", optional=True)


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_hub_is_requested_again(server, tmp_path, status):
    server.add("o/m", saved(tmp_path))
    server.fail("HEAD", "config.json", status=status)
    server.fail("GET", "/content/", status=status)
    assert resolve_file("o/m", "config.json").is_file()
    same_weights(resolve_weights("o/m"))


def test_a_small_file_of_a_broken_connection_is_whole_or_absent(server):
    body = b'{"model_type": "bit"}'
    server.add("o/m", {"config.json": body})
    server.fail("GET", "config.json", drop_after=5)
    assert resolve_file("o/m", "config.json").read_bytes() == body


def test_a_broken_download_goes_on_in_the_next_run(server, tmp_path):
    files = saved(tmp_path)
    server.add("o/m", files)
    server.fail("GET", "/content/", drop_after=2000)
    server.fail("GET", "/content/", status=503, times=99)
    with pytest.raises(DownloadError, match="2,000 bytes"):
        resolve_weights("o/m")
    server.faults.clear()
    assert not list((tmp_path / "home").rglob("model.safetensors"))
    path = resolve_weights("o/m")
    assert path.read_bytes() == files["model.safetensors"]
    assert [
        span
        for method, path, span in server.requests
        if method == "GET" and path.startswith("/content/")
    ][-1] == "bytes=2000-"


def test_wrong_bytes_of_the_right_size_are_thrown_away(server, tmp_path, monkeypatch):
    files = saved(tmp_path)
    server.add("o/m", files)
    blobs = Path(os.environ["HF_HOME"]) / "hub" / "models--o--m" / "blobs"
    blobs.mkdir(parents=True)
    good = files["model.safetensors"]
    # what a broken disk might have kept
    (blobs / f"{hashlib.sha256(good).hexdigest()}.partial").write_bytes(b"?" * 3000)
    with pytest.raises(DownloadError, match="SHA-256"):
        resolve_weights("o/m")
    assert resolve_weights("o/m").read_bytes() == good


def test_offline_uses_the_cache_and_says_what_is_not_in_it(server, tmp_path, monkeypatch):
    server.add("o/m", saved(tmp_path))
    server.add("o/new", saved(tmp_path))
    resolve_file("o/m", "config.json")
    resolve_weights("o/m")
    requested = len(server.requests)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    same_weights(resolve_weights("o/m"))
    resolve_file("o/m", "config.json")
    assert resolve_file("o/m", "preprocessor_config.json", optional=True) is None
    with pytest.raises(OfflineError, match=r"o/new.*HF_HUB_OFFLINE"):
        resolve_weights("o/new")
    with pytest.raises(OfflineError, match="uploaded"):
        push_to_hub(tmp_path, "me/m")
    with pytest.raises(OfflineError, match="not in the cache"):
        download(Download(f"{server.url}/files/a"))
    monkeypatch.delenv("HF_HUB_OFFLINE")
    same_weights(resolve_weights("o/m", local_files_only=True))
    with pytest.raises(OfflineError, match="local_files_only"):
        resolve_weights("o/new", local_files_only=True)
    assert len(server.requests) == requested


def test_offline_with_only_a_configuration_does_not_claim_that_there_are_no_weights(
    server, tmp_path, monkeypatch
):
    server.add("o/m", saved(tmp_path))
    resolve_file("o/m", "config.json")
    with pytest.raises(OfflineError, match=r"model\.safetensors"):
        resolve_weights("o/m", local_files_only=True)


def test_an_unreachable_hub_is_like_being_offline(server, tmp_path, monkeypatch, slept):
    server.add("o/m", saved(tmp_path))
    resolve_weights("o/m")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # the discard port: nobody listens
    same_weights(resolve_weights("o/m"))
    with pytest.raises(OfflineError, match=r"o/new.*127\.0\.0\.1:9"):
        resolve_file("o/new", "config.json")
    assert resolve_file("o/m", "preprocessor_config.json", optional=True) is None
    with pytest.raises(OfflineError, match="preprocessor"):
        resolve_file("o/m", "preprocessor_config.json")
    assert sum(slept) <= 3, "nobody wants to wait for a Hub that is not there"


# huggingface_hub's own call of its client
@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
def test_a_pushed_folder_comes_back(server, tmp_path):
    files = saved(tmp_path / "model")
    (tmp_path / "model" / ".secret").write_text("not for others")
    address = push_to_hub(tmp_path / "model", "me/new", token="mine", commit_message="First")
    assert address.startswith(f"{server.url}/me/new/commit/")
    assert server.repos["me/new"].revisions["main"] == files
    same_weights(resolve_weights("me/new"))
    push_to_hub(tmp_path / "model", "me/new", token="mine", revision="v2")
    assert server.repos["me/new"].revisions["v2"] == files


def test_pushing_without_the_right_token(server, tmp_path):
    saved(tmp_path)
    server.add("me/old", {"config.json": b"{}"}, token="mine")
    with pytest.raises(AuthError, match="401"):
        push_to_hub(tmp_path, "me/old", token="wrong")
    with pytest.raises(NotFoundError, match="no folder"):
        push_to_hub(tmp_path / "gone", "me/old")


def test_import_is_quick_and_loads_no_client():
    code = (
        "import sys, headstart.hub.resolve; print({'huggingface_hub', 'torch', 'numpy', 'tqdm',"
        " 'requests', 'httpx', 'http.client'} & set(sys.modules))"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", code], check=True, capture_output=True, text=True
        ).stdout
        == "set()\n"
    )


@pytest.mark.parametrize(
    ("headers", "message"),
    [
        ({"X-Linked-Etag": '"../../../../evil"'}, "gives .* the ETag '../../../../evil'"),
        ({"X-Repo-Commit": "../../evil"}, "gives .* the commit '../../evil'"),
        ({"Location": "file:///etc/hostname"}, "not an http"),
    ],
)
def test_answers_that_lead_elsewhere_are_refused(server, tmp_path, headers, message):
    server.add("o/m", saved(tmp_path))
    usual = {"X-Repo-Commit": "a" * 40, "X-Linked-Etag": f'"{"b" * 64}"', "X-Linked-Size": "9"}
    usual["Location"] = f"{server.content_url}/content/{'b' * 64}"
    server.fail("HEAD", "model.safetensors", status=302, headers=usual | headers, times=9)
    with pytest.raises(DownloadError, match=message):
        resolve_file("o/m", "model.safetensors")
    assert not list(tmp_path.rglob("*evil*"))


def test_a_redirect_to_a_file_is_not_followed(server, tmp_path):
    server.plain["a.bin"] = b"x" * 10
    server.fail("GET", "a.bin", status=302, headers={"Location": "file:///etc/hostname"})
    with pytest.raises(DownloadError, match="file:///etc/hostname.* is not allowed"):
        download(Download(f"{server.url}/files/a.bin"))
