"""The client against recorded answers of the real Hub, header for header (exchanges/README.md)."""

import json
from pathlib import Path

import pytest

from headstart.errors import AuthError, DownloadError, HubError, NotFoundError
from headstart.hub.resolve import resolve_file, resolve_weights
from hub_replay import EXCHANGES, ReplayServer, replaying

CONFIG, WEIGHTS = '{"model_type": "bit"}', "weights " * 40
BIT = "google/bit-50"


@pytest.fixture
def hub(point_at, request):
    """A Hub that plays the scenario of that name."""
    with replaying(request.param) as server:
        point_at(server.url)
        yield server
        assert not server.unknown


def shown_to_cdn(server: ReplayServer) -> set[str | None]:
    return {token for _, _, host, token in server.requests if host == "cdn"}


@pytest.mark.parametrize("hub", ["small_file"], indirect=True)
def test_a_small_file_through_the_resolve_cache(hub):
    path = resolve_file(BIT, "config.json", token="secret")
    assert (
        path.read_text() == CONFIG
        and path.parent.name == "5bedfd096acd665c6d49c3d6cbe5065b18cc573d"
    )
    assert resolve_file(BIT, "config.json", token="secret") == path
    assert len(hub.requested("GET")) == 1


@pytest.mark.parametrize("hub", ["large_file", "old_storage"], indirect=True)
def test_a_large_file_from_the_content_server(hub):
    """Its own tag there is not the SHA-256 of the file; the Hub's redirect has that. The content
    server never sees the token.
    """
    path = resolve_weights(BIT, token="secret", formats=("safetensors",))
    assert path.read_text() == WEIGHTS
    assert shown_to_cdn(hub) == {None}
    assert {token for _, _, host, token in hub.requests if host == "hub"} == {"secret"}


@pytest.mark.parametrize("hub", ["large_file"], indirect=True)
def test_a_broken_large_file_is_not_taken(hub):
    """Without xet, what the content server sends is held to the SHA-256 of the redirect."""
    answer = next(a for (method, path), a in hub.answers.items() if "xet-bridge" in path)
    answer[0]["body"] = WEIGHTS.replace("w", "W")
    with pytest.raises(DownloadError, match="SHA-256"):
        resolve_weights(BIT, formats=("safetensors",))


@pytest.fixture
def xet(monkeypatch):
    """Takes the place of the xet client: which files were requested."""
    pytest.importorskip("hf_xet")
    from huggingface_hub import constants, file_download

    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    requested = []

    def xet_get(*, incomplete_path, xet_file_data, **rest):
        requested.append(xet_file_data.file_hash)
        Path(incomplete_path).write_text(WEIGHTS)

    monkeypatch.setattr(file_download, "xet_get", xet_get)
    return requested


@pytest.mark.parametrize("hub", ["large_file"], indirect=True)
def test_xet_storage_is_left_to_the_xet_client(hub, xet):
    path = resolve_weights(BIT, formats=("safetensors",))
    assert path.read_text() == WEIGHTS and len(xet) == 1 and len(xet[0]) == 64
    assert not hub.requested("GET", "xet-bridge")


@pytest.mark.parametrize("hub", ["large_file"], indirect=True)
def test_a_failure_of_the_xet_client_says_how_to_do_without(hub, xet, monkeypatch):
    from huggingface_hub import file_download

    def fails(**given):
        raise RuntimeError("CAS Client Error: Request Error")

    monkeypatch.setattr(file_download, "xet_get", fails)
    with pytest.raises(DownloadError, match="CAS Client Error.*HF_HUB_DISABLE_XET=1"):
        resolve_weights(BIT, formats=("safetensors",))


REFUSALS = [
    ("gated", "meta-llama/Llama-3.1-8B-Instruct", None, AuthError, "is gated: ask for access"),
    ("gated_with_token", "meta-llama/Llama-3.1-8B-Instruct", "mine", AuthError, "is gated"),
    (
        "unknown_or_private",
        "wzshiming/test",
        None,
        NotFoundError,
        "no model 'wzshiming/test'.*private",
    ),
    ("unknown_or_private", "wzshiming/test", "wrong", NotFoundError, "no model.*token"),
    ("unknown_with_token", "wzshiming/none", "mine", NotFoundError, "no model 'wzshiming/none'"),
    ("invalid_token", BIT, "wrong", AuthError, r"refuses config\.json.*401.*token"),
    ("disabled", "ykilcher/gpt-4chan", None, AuthError, "is disabled"),
]


@pytest.mark.parametrize("hub, name, token, kind, message", REFUSALS, indirect=["hub"])
def test_refusals(hub, name, token, kind, message):
    """The real Hub answers an unknown model and a private one alike: 401, without an error code."""
    with pytest.raises(kind, match=message):
        resolve_file(name, "config.json", token=token if token else False)
    with pytest.raises(kind, match=message):  # nor is it a file that may be absent
        resolve_file(name, "config.json", token=token if token else False, optional=True)


@pytest.mark.parametrize("hub", ["unknown_file"], indirect=True)
def test_an_unknown_file(hub):
    assert resolve_file(BIT, "nothing.json", optional=True) is None
    with pytest.raises(NotFoundError, match=r"no nothing\.json"):
        resolve_file(BIT, "nothing.json")


@pytest.mark.parametrize("hub", ["unknown_revision"], indirect=True)
def test_an_unknown_revision(hub):
    with pytest.raises(NotFoundError, match="no revision 'v9'"):
        resolve_file(BIT, "config.json", revision="v9")


@pytest.mark.parametrize("hub", ["renamed", "renamed_absolute"], indirect=True)
def test_a_renamed_model(hub):
    config = resolve_file("gpt2", "config.json", token="secret")
    weights = resolve_weights("gpt2", token="secret", formats=("safetensors",))
    assert config.read_text() == CONFIG and weights.read_text() == WEIGHTS
    assert config.parent == weights.parent
    assert shown_to_cdn(hub) == {None}


@pytest.mark.parametrize(
    "hub, wait", [("too_many_requests", 7), ("retry_after", 5)], indirect=["hub"]
)
def test_a_busy_hub_is_waited_for_as_long_as_it_says(hub, wait, slept):
    assert resolve_weights(BIT, formats=("safetensors",)).read_text() == WEIGHTS
    assert wait + 1.0 in slept  # huggingface_hub's, before it asks for the file


@pytest.mark.parametrize(
    "hub, wait", [("busy_file", 7), ("busy_file_retry_after", 5)], indirect=["hub"]
)
def test_a_file_is_waited_for_as_long_as_the_hub_says(hub, wait, slept):
    assert resolve_file(BIT, "config.json").read_text() == CONFIG
    assert slept == [wait]


@pytest.mark.parametrize("hub", ["too_many_requests_for_long"], indirect=True)
def test_a_wait_of_minutes_is_told_instead(hub, slept):
    with pytest.raises(DownloadError, match="429.*asks to wait 290 s"):
        resolve_weights(BIT, formats=("safetensors",))
    assert sum(slept) < 60


@pytest.mark.parametrize("hub", ["sharded_bin"], indirect=True)
def test_shards_of_a_pickle_come_from_the_commit_of_their_index(hub):
    path = resolve_weights("o/m")
    assert path.name == "pytorch_model.bin.index.json"
    shards = sorted(path.parent.glob("*.bin"))
    assert [each.read_text()[:6] for each in shards] == ["first ", "second"]


@pytest.mark.parametrize(
    "hub, message",
    [
        ("hostile_file", "not an http"),
        ("hostile_etag", "ETag '../../../../evil'"),
        ("hostile_commit", "commit '../../evil'"),
    ],
    indirect=["hub"],
)
def test_hostile_redirects_are_refused(hub, message, tmp_path):
    with pytest.raises(DownloadError, match=message):
        resolve_file(BIT, "model.safetensors", token="secret")
    assert not list(tmp_path.rglob("*evil*")) and shown_to_cdn(hub) <= {None}


@pytest.mark.parametrize("hub", ["hostile_relative"], indirect=True)
def test_an_address_without_a_scheme_does_not_take_the_token_elsewhere(hub):
    with pytest.raises(HubError):
        resolve_file(BIT, "config.json", token="secret")
    assert shown_to_cdn(hub) <= {None}


@pytest.mark.parametrize("hub", ["moved_branch"], indirect=True)
def test_a_partial_snapshot_is_completed(hub, tmp_path):
    """A branch that moved between two files, and a file whose bytes are gone from the cache."""
    config = resolve_file(BIT, "config.json")
    weights = resolve_weights(BIT, formats=("safetensors",))
    assert config.parent.name != weights.parent.name == "a" * 40
    weights.resolve().unlink()  # leaves a dangling link in the snapshot
    assert resolve_weights(BIT, formats=("safetensors",)).read_text() == WEIGHTS


def test_every_exchange_has_its_source():
    readme = (EXCHANGES / "README.md").read_text()
    for path in EXCHANGES.glob("*.json"):
        assert f"`{path.stem}`" in readme
        for each in json.loads(path.read_text())["exchanges"]:
            assert {"method", "path", "status", "headers"} <= set(each)
