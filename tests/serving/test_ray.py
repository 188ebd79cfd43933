"""Predictions by a cluster: every row exactly once, and the rows of `headstart predict`."""

import json
import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from command_line import call
from headstart import embed
from photo_data import make_photo

ray = pytest.importorskip("ray")
parquet = pytest.importorskip("pyarrow.parquet")
# Ray leaves sockets to its interpreter's end, and Python and JAX warn of forks in threads
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings(r"ignore:os\.fork\(\) was called:RuntimeWarning"),
]

IMAGES = 48


def make_images(folder: Path) -> Path:
    """Photos, and one file that is none."""
    folder.mkdir()
    for i in range(IMAGES):
        color = (40 + 4 * i, 200 - 3 * i, (37 * i) % 255)
        Image.fromarray(make_photo(color, i)).save(folder / f"{i:03d}.png")
    (folder / "020.png").write_text("words")
    return folder


@pytest.fixture(scope="module")
def cluster():
    """Two nodes on this machine, with one processor to spare on each."""
    from ray.cluster_utils import Cluster

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    size = {"num_cpus": 2, "object_store_memory": 80 << 20}
    found = Cluster(initialize_head=True, head_node_args={**size, "include_dashboard": False})
    found.second = found.add_node(**size)
    found.wait_for_nodes()
    yield found
    ray.shutdown()
    found.shutdown()


def rows_of(out) -> list[dict]:
    return parquet.read_table(out).to_pylist()


def kill_when_begun(cluster, out: Path) -> threading.Thread:
    """Kills the second node as soon as the first block is written."""

    def wait() -> None:
        end = time.monotonic() + 120
        while not list(out.glob("part-*.parquet")) and time.monotonic() < end:
            time.sleep(0.01)
        cluster.remove_node(cluster.second, allow_graceful=False)

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def test_a_node_is_killed_and_every_row_is_there_once(
    cluster, tiny_model, tmp_path, capsys, monkeypatch
):
    """Actors run on both nodes, one dies in the middle; the rows are those of plain predict.

    Then the run is continued where only one file is missing: no other is touched.
    """
    from headstart.data import blocks

    monkeypatch.setattr(blocks, "BLOCK_ROWS", 2)
    images, out = make_images(tmp_path / "images"), tmp_path / "out"
    code, _, errors = call(
        capsys, "predict", tiny_model, images, "--out", tmp_path / "plain.parquet"
    )
    assert code == 3 and "020.png" in errors
    killer = kill_when_begun(cluster, out)
    options = ("--ray", cluster.address, "--actors", 2, "--out", out)
    code, printed, errors = call(capsys, "predict", tiny_model, images, *options)
    killer.join()
    assert code == 3, errors
    assert f"{IMAGES} rows in {IMAGES // 2} files, 1 with an error" in printed
    assert "020.png" in errors and "failed" not in errors
    assert len(list(cluster.list_all_nodes())) == 1
    rows, plain = rows_of(out), rows_of(tmp_path / "plain.parquet")
    assert [row["path"] for row in rows] == [row["path"] for row in plain]
    for row, expected in zip(rows, plain, strict=True):
        assert row["probability"] == pytest.approx(expected["probability"], abs=1e-6)
        assert [each["label"] for each in row["top_k"] or ()] == [
            each["label"] for each in expected["top_k"] or ()
        ]
        assert row["error"] == expected["error"]

    before = {file.name: file.stat().st_mtime_ns for file in out.glob("part-*.parquet")}
    lost = out / "part-00000003.parquet"
    lost.unlink()
    assert call(capsys, "predict", tiny_model, images, *options)[0] == 2  # without --resume
    code, printed, _ = call(capsys, "predict", tiny_model, images, *options, "--resume")
    assert code == 3 and f"{IMAGES} rows in {IMAGES // 2} files" in printed
    after = {file.name: file.stat().st_mtime_ns for file in out.glob("part-*.parquet")}
    assert after.pop(lost.name) != before.pop(lost.name) and after == before
    assert rows_of(out) == rows

    vectors = tmp_path / "vectors"
    options = ("--ray", cluster.address, "--actors", 1, "--out", vectors, "--json")
    code, printed, _ = call(capsys, "embed", tiny_model, images / "001.png", *options)
    answer, expected = json.loads(printed), embed(tiny_model, images / "001.png")
    assert code == 0 and (answer["rows"], answer["key"]) == (1, expected.key)
    assert np.array_equal(rows_of(vectors)[0]["features"], expected.features[0])
