"""safetensors, shards, folders, and writing without ever leaving half of anything."""

import errno
import io
import json
import mmap
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from checkpoint_samples import TB, as_arrays, assert_same, every_format, some_tensors
from headstart.checkpoint import (
    atomic_write,
    parse_size,
    read_checkpoint,
    read_index,
    read_metadata,
    read_tensors,
    safetensors_file,
    unwrap,
    write_tensors,
)
from headstart.checkpoint.raw import ITEM_SIZE, Raw
from headstart.errors import FileFormatError, InputError, NotFoundError

# safetensors.


def test_safetensors_round_trip_and_the_library_agrees(tmp_path):
    tensors = some_tensors()
    (path,) = write_tensors(tmp_path, tensors)
    assert path.name == "model.safetensors"
    assert_same(read_tensors(path), tensors)
    assert_same(load_file(path), {name: value.contiguous() for name, value in tensors.items()})
    assert read_metadata(path) == {"format": "pt"}
    save_file(
        {name: value.contiguous() for name, value in tensors.items()},
        tmp_path / "theirs.safetensors",
    )
    assert_same(read_tensors(tmp_path / "theirs.safetensors"), tensors)


def test_arrays_round_trip(tmp_path):
    arrays = as_arrays(some_tensors()) | {"big endian": np.arange(3, dtype=">i4")}
    write_tensors(tmp_path, arrays)
    read = read_checkpoint(tmp_path, "numpy")
    assert_same(read, arrays | {"big endian": np.arange(3, dtype="i4")})
    assert (
        (tmp_path / "model.safetensors")
        .read_bytes()[8:]
        .startswith(b'{"__metadata__":{"format":"pt"}')
    )


def test_loaded_memory_is_the_file_and_changing_it_is_private(tmp_path):
    (path,) = write_tensors(tmp_path, {"a": torch.ones(1000)})
    before = path.read_bytes()
    assert isinstance(safetensors_file.read(path)["a"].buffer, mmap.mmap)
    tensor = read_tensors(path)["a"]
    tensor.mul_(3)
    assert tensor.sum() == 3000
    array = read_tensors(path, "numpy")["a"]
    array += 1
    assert path.read_bytes() == before


def test_bfloat16_without_ml_dtypes_becomes_float32(tmp_path, monkeypatch):
    from headstart.checkpoint import raw

    value = torch.randn(7).bfloat16()
    write_tensors(tmp_path, {"a": value, "b": value.to(torch.float8_e4m3fn)})
    assert read_checkpoint(tmp_path, "numpy")["a"].dtype.name == "bfloat16"
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    raw.numpy_dtype.cache_clear()
    try:
        with pytest.raises(FileFormatError, match=r"float8_e4m3fn.*ml_dtypes"):
            read_checkpoint(tmp_path, "numpy")
        write_tensors(tmp_path, {"a": value})
        array = read_checkpoint(tmp_path, "numpy")["a"]
    finally:
        raw.numpy_dtype.cache_clear()
    assert array.dtype == np.float32
    np.testing.assert_array_equal(array, value.float().numpy())


def test_a_tied_tensor_is_stored_once_and_comes_back_under_both_names(tmp_path):
    shared = torch.randn(50, 4)
    tensors = {"embed": shared, "other": torch.randn(50, 4), "decoder": shared, "part": shared[:3]}
    write_tensors(tmp_path, tensors)
    assert (tmp_path / "model.safetensors").stat().st_size < 3 * 800
    read = read_checkpoint(tmp_path)
    assert_same({name: read[name] for name in tensors}, tensors)
    assert read["embed"].data_ptr() == read["decoder"].data_ptr()
    write_tensors(tmp_path, tensors, max_shard_size=1000)
    assert_same(dict(sorted(read_checkpoint(tmp_path).items())), dict(sorted(tensors.items())))


def header_of(values: object, data: bytes = b"") -> bytes:
    text = values if isinstance(values, bytes) else json.dumps(values).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(shape, offsets, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize(
    "content, message",
    [
        (header_of({"a": entry([TB], [0, 4 * TB])}), "damaged or cut off"),
        (header_of({"a": entry([2], [0, 8])}, b"\0" * 7), "damaged or cut off"),
        (header_of({"a": entry([2], [0, 8])}, b"\0" * 9), "has .* bytes where"),
        (
            header_of({"a": entry([2], [0, 8]), "b": entry([2], [4, 12])}, b"\0" * 12),
            "b does not begin",
        ),
        (header_of({"a": entry([2], [4, 12])}, b"\0" * 12), "a does not begin"),
        (header_of({"a": entry([1], [0, 8])}, b"\0" * 8), "another size"),
        (header_of({"a": entry([3], [0, 8])}, b"\0" * 8), "claims shape"),
        (header_of({"a": entry([-1], [0, 8])}, b"\0" * 8), "impossible shape"),
        (header_of({"a": entry([2**62, 4], [0, 0])}), "impossible shape"),
        (header_of({"a": entry([True], [0, 4])}, b"\0" * 4), "an impossible shape"),
        (header_of({"a": entry([2], [8, 0])}, b"\0" * 8), "impossible offsets"),
        (header_of({"a": entry([2], [0, 8], "F3")}, b"\0" * 8), "type 'F3'"),
        (header_of({"a": [1]}), "damaged entry"),
        (
            header_of(
                b'{"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}'
            ),
            "twice",
        ),
        (header_of(b'{"a":' + b"[" * 100_000), "damaged safetensors header"),
        ((10_000).to_bytes(8, "little") + b"{}", "cut off"),
        (header_of(b'{"a"'), "damaged safetensors header"),
    ],
)
def test_damaged_safetensors(tmp_path, content, message):
    (tmp_path / "a.bin").write_bytes(content)
    with pytest.raises(FileFormatError, match=message) as caught:
        read_tensors(tmp_path / "a.bin")
    assert "a.bin" in str(caught.value)


# Shards and folders.


def test_shards_round_trip(tmp_path):
    tensors = {f"layer.{i}": torch.randn(10, 10) for i in range(5)} | {
        "big": torch.randn(40, 10),
        "tiny": torch.tensor(1),
    }
    paths = write_tensors(tmp_path, tensors, max_shard_size="900B")
    index = json.loads(paths[-1].read_text())
    assert paths[-1].name == "model.safetensors.index.json"
    assert index["metadata"]["total_size"] == sum(value.nbytes for value in tensors.values())
    assert sorted(index["weight_map"]) == sorted(tensors)
    assert all(path.stat().st_size < 900 + 600 or "big" in load_file(path) for path in paths[:-1])
    for source in (tmp_path, paths[-1], paths[:-1]):
        assert_same(dict(sorted(read_checkpoint(source).items())), dict(sorted(tensors.items())))


def test_a_second_save_leaves_nothing_of_the_first(tmp_path):
    many = {f"layer.{i}": torch.randn(10) for i in range(6)}
    (tmp_path / "model-notes.txt").write_text("mine")
    for size in (100, 45, 10_000, 90, 10_000):
        names = {path.name for path in write_tensors(tmp_path, many, max_shard_size=size)}
        assert {path.name for path in tmp_path.iterdir()} == names | {"model-notes.txt"}
        assert_same(dict(sorted(read_checkpoint(tmp_path).items())), many)


def test_saving_over_the_file_that_the_tensors_are_mapped_from(tmp_path):
    tensors = {"a": torch.randn(100), "b": torch.randn(50)}
    write_tensors(tmp_path, tensors)
    mapped = read_checkpoint(tmp_path)
    write_tensors(tmp_path, {"b": mapped["b"], "a": mapped["a"] * 2, "c": torch.ones(9)})
    assert torch.equal(mapped["a"], tensors["a"])
    assert torch.equal(read_checkpoint(tmp_path)["a"], tensors["a"] * 2)


def sharded(folder: Path) -> dict:
    write_tensors(folder, {"a": torch.ones(10), "b": torch.ones(10)}, max_shard_size=45)
    return json.loads((folder / "model.safetensors.index.json").read_text())


@pytest.mark.parametrize(
    "name", ["../outside.safetensors", "/etc/passwd", "a/../../b", "..\\b", "C:b", ""]
)
def test_shards_stay_in_their_folder(tmp_path, name):
    folder = tmp_path / "model"
    index = sharded(folder)
    write_tensors(tmp_path, {"a": torch.zeros(10)})
    (tmp_path / "model.safetensors").rename(tmp_path / "outside.safetensors")
    index["weight_map"]["a"] = name
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(FileFormatError, match="not in its folder; that is refused"):
        read_checkpoint(folder)


def test_a_link_out_of_the_folder_is_refused_but_not_the_hub_caches(tmp_path):
    folder = tmp_path / "hub" / "models--a--b" / "snapshots" / "0123"
    sharded(folder)
    shard = folder / "model-00001-of-00002.safetensors"
    blob = tmp_path / "hub" / "models--a--b" / "blobs" / "abc"
    blob.parent.mkdir()
    shutil.move(shard, blob)
    shard.symlink_to("../../blobs/abc")
    assert set(read_checkpoint(folder)) == {"a", "b"}
    shutil.move(blob, tmp_path / "secret")
    shard.unlink()
    shard.symlink_to(tmp_path / "secret")
    with pytest.raises(FileFormatError, match="link out of its folder"):
        read_checkpoint(folder)


def test_incomplete_and_wrong_shards_are_named(tmp_path):
    index = sharded(tmp_path)
    (tmp_path / "model-00002-of-00002.safetensors").rename(tmp_path / "aside")
    with pytest.raises(FileFormatError, match="model-00002-of-00002"):
        read_checkpoint(tmp_path)
    (tmp_path / "aside").rename(tmp_path / "model-00002-of-00002.safetensors")
    index["weight_map"] |= {"gone": "model-00001-of-00002.safetensors"}
    del index["weight_map"]["b"]
    index["weight_map"]["b2"] = "model-00002-of-00002.safetensors"
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(FileFormatError, match="not in them: b2, gone; not in the index: b"):
        read_checkpoint(tmp_path)
    first = tmp_path / "model-00001-of-00002.safetensors"
    with pytest.raises(FileFormatError, match="another shard"):
        read_checkpoint([first, first])


@pytest.mark.parametrize(
    "content", ["[]", "{}", '{"weight_map": {}}', '{"weight_map": {"a": 3}}', "{", "[" * 100_000]
)
def test_damaged_indexes(tmp_path, content):
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(FileFormatError, match=r"index\.json"):
        read_index(tmp_path / "model.safetensors.index.json")


def test_what_a_folder_prefers(tmp_path):
    torch.save({"w": torch.zeros(1)}, tmp_path / "pytorch_model.bin")
    assert read_checkpoint(tmp_path)["w"] == 0
    write_tensors(tmp_path, {"w": torch.ones(1)})
    assert read_checkpoint(tmp_path)["w"] == 1


# Writing.


def test_atomic_write_replaces_whole_files_with_usual_permissions(tmp_path):
    path = atomic_write(tmp_path / "new folder" / "config.json", '{"é": 1}')
    assert path.read_text(encoding="utf-8") == '{"é": 1}'
    mask = os.umask(0)
    os.umask(mask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~mask
    atomic_write(path, lambda file: file.write(b"second"))
    assert path.read_bytes() == b"second"
    assert list(path.parent.iterdir()) == [path]


class FullDisk(io.FileIO):
    """A file on a disk that is full after 2,000 bytes in all."""

    left = 2000

    def write(self, data) -> int:
        FullDisk.left -= len(memoryview(data).cast("B"))
        if FullDisk.left < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(data)


@pytest.fixture
def full_disk(monkeypatch):
    plain = Path.open
    monkeypatch.setattr(FullDisk, "left", 2000)
    monkeypatch.setattr(
        Path,
        "open",
        lambda path, mode="r", *a, **k: (
            FullDisk(path, "x") if mode == "xb" else plain(path, mode, *a, **k)
        ),
    )


@pytest.mark.parametrize("before, after", [("5GB", "5GB"), ("5GB", 900), (900, 900), (900, "5GB")])
def test_a_full_disk_leaves_the_old_model(tmp_path, request, before, after):
    old = {f"layer.{i}": torch.randn(10, 10) for i in range(6)}
    write_tensors(tmp_path, old, max_shard_size=before)
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    request.getfixturevalue("full_disk")
    with pytest.raises(
        OSError, match=r"cannot write model.*No space left.*bytes are free.*unchanged"
    ) as caught:
        write_tensors(
            tmp_path, {name: value + 1 for name, value in old.items()}, max_shard_size=after
        )
    assert caught.value.errno == errno.ENOSPC
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == files


@pytest.mark.parametrize(
    "before, after", [("5GB", "5GB"), ("5GB", 900), (900, 900), (900, 1300), (900, "5GB")]
)
def test_killed_between_any_two_steps_a_folder_never_mixes_two_saves(
    tmp_path, monkeypatch, before, after
):
    """A save is stopped after each of its renames and removals in turn.

    The folder holds the old model, the new one, or a clear error.
    """
    old = {f"layer.{i}": torch.zeros(10, 10) for i in range(6)}
    new = {f"layer.{i}": torch.ones(10, 10) for i in range(6)}
    steps = {"replace": Path.replace, "unlink": Path.unlink}
    for stop in range(20):
        folder = tmp_path / str(stop)
        write_tensors(folder, old, max_shard_size=before)
        count = 0

        def step(kind, path, *rest, stop=stop, **options):
            nonlocal count
            if path.suffix != ".tmp" or kind == "replace":
                count += 1
                if count > stop:
                    raise KeyboardInterrupt
            return steps[kind](path, *rest, **options)

        for kind in steps:
            monkeypatch.setattr(
                Path,
                kind,
                lambda path, *rest, kind=kind, **options: step(kind, path, *rest, **options),
            )
        try:
            write_tensors(folder, new, max_shard_size=after)
            finished = True
        except KeyboardInterrupt:
            finished = False
        finally:
            monkeypatch.undo()
        try:
            read = read_checkpoint(folder)
        except (FileFormatError, NotFoundError):
            assert not finished
        else:
            assert len({float(value.mean()) for value in read.values()}) == 1
            assert not finished or read["layer.0"][0, 0] == 1
        if finished:
            break
    assert finished


def test_a_folder_that_may_not_be_written(tmp_path, monkeypatch):
    def refuse(path, mode="r", *rest, **options):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(PermissionError, match=r"cannot write config\.json \(Permission denied\)"):
        atomic_write(tmp_path / "config.json", "{}")


def test_a_file_in_the_place_of_the_folder(tmp_path):
    (tmp_path / "taken").write_text("x")
    with pytest.raises(FileExistsError, match="cannot write"):
        write_tensors(tmp_path / "taken", {"a": torch.ones(1)})


@pytest.mark.parametrize(
    "text, count", [(5, 5), ("5", 5), ("5GB", 5 * 10**9), ("1.5 MiB", 3 << 19), ("200kb", 200_000)]
)
def test_sizes(text, count):
    assert parse_size(text) == count


@pytest.mark.parametrize("size", ["", "GB", "5 apples", "-1", 0, -3, True])
def test_impossible_sizes(size, tmp_path):
    with pytest.raises(InputError, match="max_shard_size"):
        write_tensors(tmp_path, {"a": torch.ones(1)}, max_shard_size=size)


def test_types_that_safetensors_does_not_have(tmp_path):
    with pytest.raises(InputError, match=r"w has values of type complex128"):
        write_tensors(tmp_path, {"w": torch.zeros(2, dtype=torch.complex128)})
    assert not list(tmp_path.iterdir())


# Wrappers.


@pytest.mark.parametrize("names, expected", [
    (["model.module.a", "model.module.b.c", "optim.state.0.x", "step"], ["a", "b.c"]),
    (["state_dict.a", "state_dict_ema.a", "optimizer.x"], ["a"]),
    (["model_state_dict.model.a", "model_state_dict.mlm.b"], ["model.a", "mlm.b"]),
    (["model.a", "head.b"], ["model.a", "head.b"]),
    (["a", "b.c"], ["a", "b.c"]),
    (["model"], ["model"]),
    ([], []),
])  # fmt: skip
def test_unwrap(names, expected):
    assert list(unwrap(dict.fromkeys(names))) == expected


# What it costs.


def test_arrays_are_read_without_torch(tmp_path):
    every_format(tmp_path)
    code = (
        "import sys; from pathlib import Path; from headstart.checkpoint import read_tensors,"
        " write_tensors, write_npz\nfor path in sorted(Path(sys.argv[1]).iterdir()): tensors ="
        " read_tensors(path, 'numpy')\nwrite_tensors(sys.argv[1], tensors); write_npz(sys.argv[1] +"
        " '/x.npz', tensors)\nassert not {'torch', 'safetensors', 'jax', 'tensorflow'} &"
        " set(sys.modules), 'a framework was loaded'"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], stderr=subprocess.PIPE, text=True
    )
    assert run.returncode == 0, run.stderr


@settings(max_examples=60, deadline=None)
@given(
    shape=st.lists(st.integers(0, 5), max_size=4),
    dtype=st.sampled_from(sorted(set(ITEM_SIZE) - {"complex128"})),
    fortran=st.booleans(),
)
def test_any_array_survives_safetensors(tmp_path_factory, shape, dtype, fortran):
    import ml_dtypes

    folder = tmp_path_factory.mktemp("any")
    kind = np.dtype(getattr(ml_dtypes, dtype) if dtype.startswith(("bfloat", "float8")) else dtype)
    size = int(np.prod(shape)) * kind.itemsize
    array = np.frombuffer(
        np.random.default_rng(0).integers(0, 2, size, dtype=np.uint8).tobytes(), kind
    ).reshape(shape)
    array = np.asfortranarray(array) if fortran else array
    write_tensors(folder, {"a": array, "b": np.ones(3, "u1")})
    read = read_checkpoint(folder, "numpy")["a"]
    assert read.dtype == kind
    assert read.tobytes() == array.tobytes()
    assert load_file(folder / "model.safetensors")["a"].shape == array.shape


def test_raw_knows_its_extent():
    assert Raw(b"", "float32", (2, 3), 0, (5, 1)).extent == 8
    assert Raw(b"", "float32", (2, 0, 3)).extent == 0
    assert Raw(b"", "float32", ()).extent == 1


def test_a_full_disk_is_the_error_of_pytorch_too(tmp_path, full_disk):
    """`torch.save` makes a RuntimeError of its own of a write that failed."""
    state = {"w": torch.zeros(40_000)}
    with pytest.raises(OSError, match="cannot write w.bin .No space left"):
        atomic_write(tmp_path / "w.bin", lambda file: torch.save(state, file))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("tensors, shards", [(100_001, 1), (5000, 5000)])
def test_an_index_is_bounded(tmp_path, tensors, shards):
    """Each file is looked for: 200,000 of them took 15 seconds."""
    names = {f"n{i}": f"s{i % shards}.safetensors" for i in range(tensors)}
    file = tmp_path / "model.safetensors.index.json"
    file.write_text(json.dumps({"weight_map": names}))
    with pytest.raises(FileFormatError, match=f"lists {tensors:,} tensors in {shards:,} files"):
        read_index(file)
