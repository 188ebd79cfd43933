"""The suite may not shrink unseen: `tests/collected` holds the number of its tests."""

from pathlib import Path

import pytest

from conftest import data_dir

HERE = Path(__file__).parent


@pytest.fixture
def collected(request):
    """All tests of a run of the whole suite; of those, a process of pytest-xdist runs a part."""
    config = request.config
    whole = [Path(each).name for each in config.args] == config.getini("testpaths")
    if not whole or config.option.keyword or config.option.markexpr:
        pytest.skip("a part of the suite is run")
    data_dir()  # which many lists of parameters come from
    return request.session.items


def test_no_test_is_lost(collected):
    expected = int((HERE / "collected").read_text())
    assert len(collected) >= expected, (
        f"{len(collected)} tests were collected, tests/collected says {expected}; where tests were"
        " removed on purpose, write the new number there and say why in the commit"
    )


def test_no_parametrized_list_is_empty(collected):
    marks = {item.nodeid: item.get_closest_marker("skip") for item in collected}
    assert not [
        name
        for name, mark in marks.items()
        if mark and "empty parameter set" in mark.kwargs.get("reason", "")
    ]
