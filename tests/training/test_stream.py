"""Training from shards that are read from front to back."""

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from command_line import call
from headstart import train
from headstart.data.options import DataOptions
from headstart.data.sources.raw import source_bytes
from headstart.data.sources.tables import stream_parquet
from headstart.data.sources.tars import stream_tar
from headstart.data.stream import Stream
from headstart.errors import ConfigError, DataError
from headstart.recipe import Recipe
from headstart.tasks.streamed_images import StreamedClassification
from photo_data import CLASSES, make_photo

SHARDS, EACH = 6, 12
NAMES = list(CLASSES)
OPTIONS = (
    "--stream --steps 6 --lr 0.05 --resize 24 --crop 20 --micro-batch 3 --mixup 0 --device cpu"
    " --batch-size 10 --set checkpoint_every=2 --workers 1 --option lanes=4 --option window=5"
)


def write_shard(
    file: Path,
    first: int,
    count: int = EACH,
    damaged: int | None = None,
    *,
    truncated: bool = False,
) -> None:
    """Samples `000001.png`, `000001.cls`; a damaged one is a text or a part of an image."""
    with tarfile.open(file, "w") as tar:
        for i in range(first, first + count):
            label = NAMES[i % len(NAMES)]
            out = io.BytesIO()
            Image.fromarray(make_photo(CLASSES[label], i)).save(out, "PNG")
            content = out.getvalue()
            if i == damaged:
                content = content[: len(content) // 2] if truncated else b"words"
            for kind, data in (("png", content), ("cls", label.encode())):
                member = tarfile.TarInfo(f"{i:06d}.{kind}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    """Six shards of twelve images, and one to evaluate on."""
    folder = tmp_path_factory.mktemp("shards")
    for i in range(SHARDS):
        write_shard(folder / f"train-{i:02d}.tar", EACH * i)
    (folder / "val").mkdir()
    write_shard(folder / "val" / "val.tar", 900)
    return folder


def pattern(shards) -> str:
    return f"{shards}/train-{{00..{SHARDS - 1:02d}}}.tar"


def files(shards) -> list[str]:
    return sorted(map(str, shards.glob("train-*.tar")))


def by_name(shard, samples):
    """Examples whose labels are the numbers in their names."""
    from headstart.data.examples import Examples

    numbers = np.array([int(each.name.split(".")[0]) for each in samples])
    return Examples([each.row["image"] for each in samples], numbers, [e.name for e in samples])


def stream(shards, batch=10, lanes=4, window=5, seed=3) -> Stream:
    return Stream(files(shards), by_name, batch, seed, lanes=lanes, window=window)


def numbers(stream, step, rows) -> list[int]:
    return [int(examples.labels[at]) for examples, at in stream.rows(step, rows)]


@pytest.mark.parametrize("uri", [False, True])
@pytest.mark.parametrize("first", [0, 1, 11, 12])
def test_a_shard_is_read_from_any_sample_on(shards, uri, first):
    shard = files(shards)[1]
    read = list(stream_tar(Path(shard).as_uri() if uri else shard, first))
    assert [each.name for each in read] == [f"{i:06d}.png" for i in range(12 + first, 24)]
    assert [each.row["label"] for each in read] == [NAMES[i % 3] for i in range(12 + first, 24)]


def test_class_folders_in_a_tar_are_labels(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name in ("a/1.jpg", "b/1.jpg", "b/.hidden.jpg", "b/readme.md"):
            tar.addfile(tarfile.TarInfo(name))
    found = list(stream_tar(str(tmp_path / "a.tar")))
    assert [(each.name, each.row["label"]) for each in found] == [
        ("a/1.jpg", "a"),
        ("b/1.jpg", "b"),
    ]
    with tarfile.open(tmp_path / "b.tar", "w") as tar:
        for name in ("x.1.jpg", "x.2.jpg"):
            tar.addfile(tarfile.TarInfo(name))
    with pytest.raises(DataError, match=r"x\.1\.jpg and x\.2\.jpg are of one sample"):
        list(stream_tar(str(tmp_path / "b.tar")))
    with tarfile.open(tmp_path / "c.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("../x.jpg"))
    with pytest.raises(DataError, match="leads outside"):
        list(stream_tar(str(tmp_path / "c.tar")))


def test_every_sample_comes_once_in_an_epoch(shards):
    """Lanes of equal parts and shards of equal size: epochs are exact, and shuffled."""
    one = stream(shards, batch=12, lanes=6, window=4)
    seen = [numbers(one, step, slice(0, 12)) for step in range(12)]
    first, second = np.concatenate(seen[:6]), np.concatenate(seen[6:])
    assert sorted(first) == sorted(second) == list(range(SHARDS * EACH))
    assert list(first) != list(second) and list(first) != sorted(first)


@pytest.mark.parametrize("processes", [2, 3])
def test_rows_do_not_depend_on_the_number_of_processes(shards, processes):
    """Two processes divide four lanes; three share some of them, to the same effect."""
    one, many = stream(shards), [stream(shards) for _ in range(processes)]
    bounds = [10 * i // processes for i in range(processes + 1)]
    for step in range(20):
        parts = [numbers(each, step, slice(*bounds[i : i + 2])) for i, each in enumerate(many)]
        assert sum(parts, []) == numbers(one, step, slice(0, 10))
    if processes == 2:
        assert [sorted(each.used) for each in many] == [[0, 1], [2, 3]]


@pytest.mark.parametrize("step", [0, 1, 5, 13])
def test_a_stream_goes_on_from_its_positions(shards, step):
    """Two processes stop, and one goes on: only the windows that are due are read."""
    whole, halves = stream(shards), [stream(shards), stream(shards)]
    for at in range(step + 1):  # the next batch is read ahead
        for i, each in enumerate(halves):
            each.rows(at, slice(5 * i, 5 * i + 5))
    known = sum(each.positions(step) for each in halves)
    assert (known[:, 3] == 1).all()
    again = stream(shards)
    again.go_to(known[:, :3].tolist())
    for later in range(step, step + 15):
        assert numbers(again, later, slice(0, 10)) == numbers(whole, later, slice(0, 10))


def run(shards, model, out, launcher=(), more=()):
    words = [
        pattern(shards),
        "--model",
        str(model),
        "--val",
        str(shards / "val"),
        "--out",
        str(out),
    ]
    command = [sys.executable, "-m", *launcher, "headstart", "train", *words, *OPTIONS.split()]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*command, *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def losses(out) -> list[float]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


@pytest.mark.slow
def test_two_processes_and_a_killed_run_have_the_losses_of_one(shards, tiny_model, tmp_path):
    """Two processes over loopback read different shards; a run that is killed goes on bit for
    bit."""
    pytest.importorskip("accelerate")
    two = ("torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29547", "-m")
    for name, launcher in (("one", ()), ("two", two)):
        process = run(shards, tiny_model, tmp_path / name, launcher)
        _, printed = process.communicate(timeout=180)
        assert process.returncode == 0, printed
    assert "a first look at 72 of about 72 images" in printed
    assert len(losses(tmp_path / "one")) == 6
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)

    out = tmp_path / "killed"
    process = run(shards, tiny_model, out)
    while not list((out / "checkpoints").glob("step-*")) and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=300)
    state = json.loads(next((out / "checkpoints").glob("step-*/state.json")).read_text())
    assert len(state["positions"]) == 4 and np.sum(state["positions"]) > 0
    train(pattern(shards), out=out, resume=True, device="cpu", workers=1)
    assert losses(out) == losses(tmp_path / "one")
    results = json.loads((out / "results.json").read_text())
    assert results["evaluations"]["validation"]["examples"] == EACH


def test_parquet_files_are_streamed(shards, tmp_path):
    """Rows of row groups of five, with bytes; any row on from any place."""
    parquet = pytest.importorskip("pyarrow.parquet")
    pyarrow = pytest.importorskip("pyarrow")
    for number, shard in enumerate(files(shards)):
        found = list(stream_tar(Path(shard).as_uri()))
        columns = {
            "image": [e.row["image"] for e in found],
            "label": [e.row["label"] for e in found],
        }
        file = tmp_path / f"train-{number}.parquet"
        parquet.write_table(pyarrow.table(columns), file, row_group_size=5)
        rows = [list(stream_parquet(str(file), first)) for first in range(13)]
        for first, part in enumerate(rows):
            assert part == rows[0][first:] and len(part) == EACH - first
        assert [each.row["label"] for each in rows[0]] == columns["label"]
    by_tar, by_row = read(pattern(shards)), read(str(tmp_path))
    assert by_row.classes == by_tar.classes and by_row.facts() == by_tar.facts()
    recipe = Recipe(batch_size=10, resize=24, crop=20, seed=3)
    for at, (examples, index) in enumerate(by_row.batch_items(recipe, 4, slice(0, 10))):
        other, same = by_tar.batch_items(recipe, 4, slice(0, 10))[at]
        assert examples.images[index] == source_bytes(other.images[same])
        assert examples.labels[index] == other.labels[same]
    parquet.write_table(pyarrow.table({"image": [b"x"], "split": ["val"]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="has a column split"):
        read(str(tmp_path / "a.parquet"))


def read(data, **options) -> StreamedClassification:
    extra = {"stream": True, **options.pop("extra", {})}
    return StreamedClassification.read(data, DataOptions(extra=extra, **options))


def test_the_first_look_is_bounded(shards, monkeypatch):
    """Of six shards three are looked into, four samples each; the number of all is estimated."""
    from headstart.tasks import streamed_images

    monkeypatch.setattr(streamed_images, "LOOK", 12)
    monkeypatch.setattr(streamed_images, "LOOKED_INTO", 3)
    task = read(pattern(shards))
    assert task.splits == {"train": 12}
    assert task.facts().examples == pytest.approx(SHARDS * EACH, rel=0.2)
    assert any("a first look at 12 of about" in line for line in task.found())
    assert any("no validation data" in line for line in task.found())
    write_shard(shards / "val-00.tar", 0)
    assert read(str(shards)).shards.names == files(shards), "val-00.tar and val/ are left alone"


def test_a_class_that_the_first_look_lacks(shards, tmp_path, monkeypatch):
    from headstart.tasks import streamed_images

    monkeypatch.setattr(streamed_images, "LOOK", 2)
    monkeypatch.setattr(streamed_images, "LOOKED_INTO", 1)
    task = read(pattern(shards))
    assert task.classes == ["bird", "cat"]
    samples = list(stream_tar(files(shards)[0]))
    with pytest.raises(DataError, match=r"000002\.png: class 'dog' is not among .* classes\.json"):
        task.labelled(files(shards)[0], samples)
    listed = tmp_path / "names.json"
    listed.write_text(json.dumps(["dog", "cat", "bird"]))
    task = read(pattern(shards), extra={"classes": str(listed)})
    assert task.classes == ["dog", "cat", "bird"]
    assert task.labelled(files(shards)[0], samples).labels[:3].tolist() == [2, 1, 0]


@pytest.mark.slow
def test_an_unreadable_image_stops_the_run_or_is_replaced(tiny_model, tmp_path):
    for i in range(2):
        write_shard(tmp_path / f"train-{i}.tar", 12 * i, damaged=None)
    write_shard(tmp_path / "train-2.tar", 24, count=60, damaged=80)
    data, out = str(tmp_path / "train-{0..2}.tar"), tmp_path / "run"
    words = {"model": str(tiny_model), "out": out, "steps": 9, "batch_size": 12, "crop": 20}
    words |= {"stream": True, "device": "cpu", "checkpoint_every": 1, "mixup": 0}
    from headstart.tasks import streamed_images

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streamed_images, "LOOK", 30)
        with pytest.raises(DataError, match=r"000080\.png: .*--resume --skip-bad"):
            train(data, **words)
        result = train(data, out=out, resume=True, skip_bad=True, device="cpu")
    assert len(losses(out)) == 9 and result.evaluation is None
    notes = json.loads((out / "results.json").read_text())["notes"]
    assert any("1 unreadable image replaced by other training images" in note for note in notes)


@pytest.mark.slow
def test_an_image_that_is_truncated_is_named_once_and_counted_once(tiny_model, tmp_path, capsys):
    """It is among the first look, which reads no pixels, and comes in every epoch."""
    for i in range(2):
        write_shard(tmp_path / f"train-{i}.tar", 12 * i, damaged=14, truncated=True)
    words = ("train", tmp_path / "train-{0..1}.tar", "--model", tiny_model, "--out", tmp_path / "r")
    words += ("--stream", "--skip-bad", "--steps", 8, "--batch-size", 12, "--crop", 20)
    code, _, err = call(capsys, *words, "--mixup", 0, "--device", "cpu", "--resize", 20)
    assert code == 0, err
    assert err.count("000014.png: ") == 1 and ": replaced" in err
    notes = json.loads((tmp_path / "r" / "results.json").read_text())["notes"]
    assert any("1 unreadable image replaced" in note for note in notes)


def test_what_streams_cannot_do_is_refused(shards, tiny_model, photos, tmp_path):
    def start(data, **more):
        return train(data, model=str(tiny_model), out=tmp_path / "run", stream=True, **more)

    with pytest.raises(ConfigError, match="--tune head is not available for .* with --stream"):
        start(pattern(shards), tune="head")
    with pytest.raises(ConfigError, match="--shots takes a few"):
        start(pattern(shards), shots=2)
    with pytest.raises(ConfigError, match="leave val_fraction=0.5 out, and give .* with --val"):
        start(pattern(shards), val_fraction=0.5)
    with pytest.raises(ConfigError, match="--stream is for image-classification"):
        start(pattern(shards), task="semantic-segmentation")
    with pytest.raises(ConfigError, match="lanes=0; expected an integer above 0"):
        start(pattern(shards), task_options={"lanes": 0})
    with pytest.raises(DataError, match="--stream reads tars"):
        start(photos)
    with pytest.raises(DataError, match="no sample with an image"):
        tarfile.open(tmp_path / "x.tar", "w").close()
        start(tmp_path / "x.tar")
