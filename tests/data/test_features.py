"""Cached features: shards that are mapped, merged, bounded, and never a reason to stop."""

import logging
import os

import numpy as np
import pytest

from headstart.checkpoint.reading import read_tensors
from headstart.cli.app import main
from headstart.data import features
from headstart.data.features import HASHES, FeatureStore, cached_networks, evict, limit
from headstart.errors import ConfigError

ROWS = np.arange(12, dtype=np.float32).reshape(4, 3)


def test_the_store_keeps_what_it_is_given(tmp_path):
    store = FeatureStore("key", tmp_path)
    store.add(["a", "b"], ROWS[:2])
    store.add(["c", "d"], ROWS[2:])
    again = FeatureStore("key", tmp_path)
    for each in (store, again):
        np.testing.assert_array_equal(each[["d", "a", "a"]], ROWS[[3, 0, 0]])
    assert "b" in again and "e" not in again and "a" not in FeatureStore("other", tmp_path)
    assert all(not part.flags.owndata for part in again.parts), "shards are mapped, not read"


@pytest.mark.parametrize("damage", [lambda data: data[:50], lambda data: b"x" * len(data)])
def test_a_damaged_shard_is_left_out(damage, tmp_path):
    store = FeatureStore("key", tmp_path)
    store.add(["a", "b"], ROWS[:2])
    store.add(["c", "d"], ROWS[2:])
    part = sorted((tmp_path / "key").iterdir())[0]
    part.write_bytes(damage(part.read_bytes()))
    assert len(FeatureStore("key", tmp_path).rows) == 2 and not part.exists()


def test_many_shards_become_few(tmp_path):
    store = FeatureStore("key", tmp_path)
    for i in range(70):
        store.add([f"{i:02d}"], np.full((1, 3), i, np.float32))
        assert len(list((tmp_path / "key").iterdir())) <= features.MANY_SHARDS
    for each in (store, FeatureStore("key", tmp_path)):
        assert each[["07", "69"]].tolist() == [[7] * 3, [69] * 3] and len(each.rows) == 70
        assert all(not part.flags.owndata for part in each.parts if len(part)), "all are mapped"


def test_large_shards_are_not_merged(tmp_path, monkeypatch):
    """What is merged is in memory, so that only so much is."""
    monkeypatch.setattr(features, "SMALL", 80)
    monkeypatch.setattr(features, "TOGETHER", 100)
    rows = np.arange(3 * 400, dtype=np.float32).reshape(400, 3)
    store = FeatureStore("key", tmp_path)
    for i in range(400):
        store.add([f"{i:03d}"], rows[i : i + 1])
    sizes = sorted(part.nbytes for part in store.parts if len(part))
    assert sizes[0] == 12 and sizes[-1] == 96 and sum(sizes) == rows.nbytes
    assert sum(size < 80 for size in sizes) <= features.MANY_SHARDS
    again = FeatureStore("key", tmp_path)
    np.testing.assert_array_equal(again[[f"{i:03d}" for i in range(400)]], rows)


def test_a_shard_that_another_process_has_merged(tmp_path, monkeypatch, caplog):
    FeatureStore("key", tmp_path).add(["a"], ROWS[:1])

    def gone(path, framework):
        path.unlink()
        return read_tensors(path, framework)

    monkeypatch.setattr(features, "read_tensors", gone)
    with caplog.at_level(logging.WARNING, "headstart"):
        assert "a" not in FeatureStore("key", tmp_path)
    assert not caplog.records


def test_a_shard_that_cannot_be_opened_is_not_removed(tmp_path, monkeypatch, caplog):
    FeatureStore("key", tmp_path).add(["a"], ROWS[:1])

    def fails(path, framework):
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING, "headstart"):
        patch.setattr(features, "read_tensors", fails)
        assert "a" not in FeatureStore("key", tmp_path)
    assert "Too many open files" in caplog.text and "a" in FeatureStore("key", tmp_path)


def test_the_least_recently_used_features_go_first(tmp_path, monkeypatch):
    for age, key in enumerate(("new", "old", "older")):
        FeatureStore(key, tmp_path).add(["a"], ROWS[:1])
        os.utime(tmp_path / key, (1000 - age, 1000 - age))
    assert [folder.name for folder in cached_networks(tmp_path)] == ["older", "old", "new"]
    FeatureStore("older", tmp_path)  # used again
    assert [folder.name for folder in cached_networks(tmp_path)] == ["old", "new", "older"]
    size = sum(cached_networks(tmp_path).values())
    assert [folder.name for folder in evict(tmp_path, bound=size - 1)] == ["old"]
    monkeypatch.setenv("HEADSTART_CACHE_LIMIT", "0")
    FeatureStore("older", tmp_path)  # the limit holds where nothing is added
    assert [folder.name for folder in cached_networks(tmp_path)] == ["older"]
    FeatureStore("last", tmp_path).add(["a"], ROWS[:1])
    assert [folder.name for folder in cached_networks(tmp_path)] == ["last"]
    monkeypatch.setenv("HEADSTART_CACHE_LIMIT", "ten")
    with pytest.raises(ConfigError, match="HEADSTART_CACHE_LIMIT='ten'"):
        limit()


def test_a_cache_that_cannot_be_written(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(features, "UNWRITTEN", {})
    (tmp_path / "file").write_text("")
    store = FeatureStore("key", tmp_path / "file")
    with caplog.at_level(logging.WARNING, "headstart"):
        store.add(["a", "b"], ROWS[:2])
        store.add(["c"], ROWS[2:3])
    np.testing.assert_array_equal(store[["c", "a"]], ROWS[[2, 0]])
    later = FeatureStore("key", tmp_path / "file")
    later.add(["d"], ROWS[3:])
    np.testing.assert_array_equal(later[["c", "d", "a"]], ROWS[[2, 3, 0]])
    assert "a" not in FeatureStore("other", tmp_path / "file")
    assert len(caplog.records) == 1 and "not stored" in caplog.text, "logged once"


def test_sizes_while_another_process_removes_files(tmp_path):
    store = FeatureStore("network", tmp_path)
    store.folder.mkdir()
    (store.folder / "gone.safetensors").symlink_to(tmp_path / "nothing")  # listed, yet not there
    store.add(["a"], ROWS[:1])
    assert "a" in FeatureStore("network", tmp_path)
    (shard,) = (file for file in store.folder.iterdir() if file.exists())
    assert features.cached_networks(tmp_path) == {store.folder: shard.stat().st_size}


def test_cache_commands(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path))
    FeatureStore("network").add(["a"], np.zeros((1, 100_000), dtype=np.float32))
    FeatureStore(HASHES).add(["a"], np.zeros((1, 64), dtype=np.float32))
    for arguments in (["cache", "info"], ["cache", "clear", "--yes"], ["cache", "info"]):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert not stop.value.code
    shown = capsys.readouterr().out
    assert "difference-hashes  0.0 MB, by which near duplicates are found" in shown
    assert "1 network, 0.4 MB" in shown and "network  " in shown and "MB removed" in shown
    assert "0 networks" in shown and features.cached_networks() == {}
