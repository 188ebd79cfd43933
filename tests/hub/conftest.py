"""What the tests of the Hub share."""

import time
from collections.abc import Callable

import pytest

from hub_server import running


@pytest.fixture
def slept(monkeypatch):
    """Waits are noted instead of waited for."""
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    return waits


@pytest.fixture
def point_at(monkeypatch, tmp_path, slept) -> Callable[[str], None]:
    """Makes headstart and huggingface_hub take an address for the Hub's, with an empty cache."""
    from huggingface_hub import constants, file_download

    for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "home" / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "home" / "token"))
    # huggingface_hub < 0.30 has none
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)

    def point(url: str) -> None:
        monkeypatch.setenv("HF_ENDPOINT", url)
        monkeypatch.setattr(constants, "ENDPOINT", url)
        for module in (constants, file_download):  # huggingface_hub < 1 keeps a second copy
            template = f"{url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
            monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)

    return point


@pytest.fixture
def server(point_at):
    """A Hub on this machine."""
    with running() as made:
        point_at(made.url)
        yield made
