"""NumPy, HDF5 and Flax files, what is not a checkpoint at all, and damage of every kind."""

import mmap
import os
import random
import struct
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from checkpoint_samples import TB, Calls, as_arrays, assert_same, every_format, packed, some_tensors
from conftest import golden_cases, golden_dir
from headstart.checkpoint import (
    flax_msgpack,
    read_checkpoint,
    read_tensors,
    write_npz,
    write_tensors,
)
from headstart.errors import FileFormatError, HeadstartError, NotFoundError

# NumPy.


@pytest.mark.parametrize("compress", [False, True])
def test_npz_round_trip_and_numpy_agrees(tmp_path, compress):
    arrays = as_arrays(some_tensors()) | {
        "resnet/block1/a": np.ones((1, 2, 3), "f4"),
        "file": np.zeros(2),
    }
    arrays["f"] = np.asfortranarray(np.eye(2, 3))
    write_npz(tmp_path / "a.npz", arrays, compress=compress)
    assert_same(read_tensors(tmp_path / "a.npz", "numpy"), arrays)
    with np.load(tmp_path / "a.npz", allow_pickle=False) as theirs:
        assert_same({name: theirs[name] for name in theirs.files}, arrays)
    assert torch.equal(read_tensors(tmp_path / "a.npz")["f"], torch.from_numpy(arrays["f"]))


def test_npz_of_torch_tensors_and_of_jax_bfloat16(tmp_path):
    import ml_dtypes

    write_npz(tmp_path / "a.npz", {"w": torch.tensor([1.5, 2.5]).bfloat16()})
    np.testing.assert_array_equal(np.load(tmp_path / "a.npz")["w"], np.array([1.5, 2.5], "f4"))
    value = np.array([1.5, -2.5, 3.0], ml_dtypes.bfloat16)
    write_npz(tmp_path / "b.npz", {"w": value})
    assert np.load(tmp_path / "b.npz")["w"].dtype.str == "|V2"
    assert torch.equal(
        read_tensors(tmp_path / "b.npz")["w"], torch.tensor([1.5, -2.5, 3.0]).bfloat16()
    )


def test_values_begin_at_a_multiple_of_their_size(tmp_path):
    """Archives put them anywhere; some processors and kernels do not take that."""
    write_npz(tmp_path / "a.npz", {"w" * n: np.arange(3.0) for n in range(1, 9)})
    assert all(value.data_ptr() % 8 == 0 for value in read_tensors(tmp_path / "a.npz").values())
    assert all(value.flags.aligned for value in read_tensors(tmp_path / "a.npz", "numpy").values())


def test_npy_and_foreign_byte_order(tmp_path):
    np.save(tmp_path / "one.npy", np.arange(6, dtype=">f8").reshape(2, 3).T)
    read = read_tensors(tmp_path / "one.npy", "numpy")["one"]
    np.testing.assert_array_equal(read, np.arange(6.0).reshape(2, 3).T)
    assert read.dtype.isnative


def npz(
    tmp_path: Path,
    header: bytes,
    data: bytes = b"",
    name: str = "w.npy",
    method: int = zipfile.ZIP_STORED,
) -> Path:
    text = header + b" " * (-(len(header) + 11) % 64) + b"\n"
    with zipfile.ZipFile(tmp_path / "a.npz", "w", method) as archive:
        archive.writestr(name, b"\x93NUMPY\x01\0" + struct.pack("<H", len(text)) + text + data)
    return tmp_path / "a.npz"


@pytest.mark.parametrize(
    "header, message",
    [
        (b"{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776,), }", "claims shape"),
        (b"{'descr': '<f4', 'fortran_order': True, 'shape': (1099511627776, 0, 2), }", None),
        (b"{'descr': '<f4', 'fortran_order': False, 'shape': (-1,), }", "impossible shape"),
        (b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }", "pickled Python objects"),
        (b"{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,), }", "not numbers"),
        (b"{'descr': '<U5', 'fortran_order': False, 'shape': (1,), }", "not numbers"),
        (b"__import__('os').system('touch SENTINEL')", "damaged NumPy header"),
        (b"[" * 5000, "damaged NumPy header"),
        (
            b"{'descr': '<f4', 'fortran_order': False, 'shape': (" + b"1, " * 40 + b"), }",
            "impossible shape",
        ),
    ],
)
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_damaged_npz(tmp_path, monkeypatch, header, message, method):
    monkeypatch.chdir(tmp_path)
    path = npz(tmp_path, header, b"\0" * 8, method=method)
    if message is None:  # nothing of anything
        assert read_tensors(path)["w"].shape == (TB, 0, 2)
        return
    with pytest.raises(FileFormatError, match=message) as caught:
        read_tensors(path)
    assert "w" in str(caught.value)
    assert not Path("SENTINEL").exists()


def test_npz_with_pickled_objects_is_refused(tmp_path):
    np.savez(tmp_path / "a.npz", w=np.array([Calls(os.system, "touch SENTINEL")], dtype=object))
    with pytest.raises(FileFormatError, match="pickled Python objects"):
        read_tensors(tmp_path / "a.npz")


def test_npz_with_something_else_in_it(tmp_path):
    path = npz(tmp_path, b"x", name="run.py")
    with pytest.raises(FileFormatError, match=r"run\.py"):
        read_tensors(path)


def test_a_zip_bomb_is_not_unpacked(tmp_path):
    path = tmp_path / "a.npz"
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (100,), }\n"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(
            "w.npy", b"\x93NUMPY\x01\0" + struct.pack("<H", len(header)) + header + b"\0" * 100
        )
    data = bytearray(path.read_bytes())
    where = data.index(b"PK\x01\x02")
    # the size that the archive claims
    data[where + 24 : where + 28] = struct.pack("<I", 0xFFFFFFF0)
    path.write_bytes(data)
    with pytest.raises(FileFormatError, match="fill the memory"):
        read_tensors(path)
    data[where + 24 : where + 28] = struct.pack("<I", 5000)
    path.write_bytes(data)
    with pytest.raises(FileFormatError, match="does not unpack"):
        read_tensors(path)


def test_a_wrong_checksum_of_a_deflated_entry_is_noticed(tmp_path):
    write_npz(tmp_path / "a.npz", {"w": np.arange(100.0)}, compress=True)
    data = bytearray((tmp_path / "a.npz").read_bytes())
    data[data.index(b"PK\x01\x02") + 16] ^= 1
    (tmp_path / "a.npz").write_bytes(data)
    with pytest.raises(FileFormatError, match="does not unpack"):
        read_tensors(tmp_path / "a.npz")


def test_a_damaged_byte_in_a_deflated_entry_is_noticed(tmp_path):
    write_npz(
        tmp_path / "a.npz", {"w": np.random.default_rng(0).integers(0, 9, 1000)}, compress=True
    )
    data = bytearray((tmp_path / "a.npz").read_bytes())
    data[300] ^= 0xFF
    (tmp_path / "a.npz").write_bytes(data)
    with pytest.raises(FileFormatError, match="damaged"):
        read_tensors(tmp_path / "a.npz")


# HDF5.


def test_h5_groups_become_paths(tmp_path):
    values = {
        "a/b/kernel:0": np.arange(6, dtype="f4").reshape(2, 3),
        "a/packed": np.arange(100.0),
        "top": np.arange(3, dtype="f2"),
    }
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["a/b/kernel:0"] = values["a/b/kernel:0"]
        file.create_dataset("a/packed", data=values["a/packed"], compression="gzip")
        file["top"] = values["top"]
        file.create_dataset("big", data=np.arange(3, dtype=">f4"))
        file["number"] = 3.5
        file.create_group("empty")
    read = read_tensors(tmp_path / "a.h5", "numpy")
    expected = values | {"big": np.arange(3, dtype="f4"), "number": np.array(3.5)}
    assert_same(dict(sorted(read.items())), dict(sorted(expected.items())))
    assert torch.equal(read_tensors(tmp_path / "a.h5")["top"], torch.arange(3).half())


def test_contiguous_h5_arrays_are_mapped(tmp_path):
    from headstart.checkpoint import keras_h5

    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["w"] = np.arange(6.0)
    assert isinstance(keras_h5.read(tmp_path / "a.h5")["w"].buffer, mmap.mmap)


@pytest.mark.parametrize(
    "make, message",
    [
        (
            lambda file, other: file.__setitem__("w", h5py.ExternalLink(str(other), "w")),
            "is a link",
        ),
        (lambda file, other: file.__setitem__("w", h5py.SoftLink("/etc")), "is a link"),
        (
            lambda file, other: file.create_dataset(
                "w", (10,), "u1", external=[("/etc/passwd", 0, 10)]
            ),
            "another file",
        ),
        (lambda file, other: file.create_virtual_dataset("w", _virtual(other)), "another file"),
        (lambda file, other: file.create_dataset("w", data=["text"]), "not numbers"),
        (
            lambda file, other: file.create_dataset("w", (1 << 45,), "f4", chunks=(1024,)),
            "fill the memory",
        ),
        (lambda file, other: file.create_dataset("w", data=h5py.Empty("f4")), "has none"),
        (lambda file, other: file["g"].__setitem__("loop", file["g"]), "contains itself"),
    ],
)
def test_hostile_h5(tmp_path, make, message):
    with h5py.File(tmp_path / "other.h5", "w") as other:
        other["w"] = np.arange(10.0)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_group("g")
        make(file, tmp_path / "other.h5")
    with pytest.raises(FileFormatError, match=message):
        read_tensors(tmp_path / "a.h5")


def _virtual(other: Path) -> h5py.VirtualLayout:
    layout = h5py.VirtualLayout((10,), "f8")
    layout[:] = h5py.VirtualSource(str(other), "w", (10,))
    return layout


def test_a_truncated_h5_is_damaged(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["w"] = np.arange(1000.0)
    data = (tmp_path / "a.h5").read_bytes()
    (tmp_path / "a.h5").write_bytes(data[:3000])
    with pytest.raises(FileFormatError, match="damaged or cut off"):
        read_tensors(tmp_path / "a.h5")


@pytest.mark.parametrize("case", golden_cases("transformers", "tf"))
def test_keras_files_hold_the_weights_of_the_torch_files(case):
    folder = golden_dir("transformers", "tf", case)
    ours = read_tensors(folder / "tf_model.h5", "numpy")
    with h5py.File(folder / "tf_model.h5") as file:
        theirs: dict[str, np.ndarray] = {}
        file.visititems(
            lambda name, each: (
                theirs.update({name: each[()]}) if isinstance(each, h5py.Dataset) else None
            )
        )
    assert_same(dict(sorted(ours.items())), dict(sorted(theirs.items())))
    (torch_file,) = (
        folder.glob("*.safetensors")
        if len(list(folder.glob("*.safetensors"))) == 1
        else [folder / "model.safetensors"]
    )
    published = read_tensors(torch_file, "numpy")
    sums = sorted(round(float(np.abs(value).astype("f8").sum()), 3) for value in ours.values())
    trained = [value for name, value in published.items() if "num_batches_tracked" not in name]
    assert sums == sorted(round(float(np.abs(value).astype("f8").sum()), 3) for value in trained)


# Flax.


@pytest.mark.parametrize("case", golden_cases("transformers", "flax"))
def test_flax_files(case):
    import msgpack

    folder = golden_dir("transformers", "flax", case)
    ours = read_tensors(folder / "flax_model.msgpack", "numpy")

    def array(code: int, data: bytes) -> object:
        shape, dtype, values = msgpack.unpackb(data)
        return np.frombuffer(values, dtype).reshape(shape)

    tree = msgpack.unpackb((folder / "flax_model.msgpack").read_bytes(), ext_hook=array)
    flat: dict[str, np.ndarray] = {}
    todo = [("", tree)]
    while todo:
        name, value = todo.pop()
        if isinstance(value, dict):
            todo += [(f"{name}/{key}".lstrip("/"), child) for key, child in value.items()]
        else:
            flat[name] = value
    assert len(flat) > 40
    assert_same(dict(sorted(ours.items())), dict(sorted(flat.items())))


def test_flax_lists_numbers_and_chunks(tmp_path):
    big = np.arange(12, dtype="f4").reshape(3, 4)
    chunked = {
        "__msgpack_chunked_array__": 1, "shape": {"0": 3, "1": 4},
        "chunks": {"0": big.reshape(-1)[:5], "1": big.reshape(-1)[5:]},
    }  # fmt: skip
    tree = {
        "params": {"big": chunked, "list": [np.ones(2), {"x": np.zeros(0, "f2")}]},
        "step": 3,
        "scalar": np.array(2.0),
    }
    (tmp_path / "a").write_bytes(packed(tree))
    expected = {
        "params/big": big,
        "params/list/0": np.ones(2),
        "params/list/1/x": np.zeros(0, "f2"),
        "scalar": np.array(2.0),
    }
    assert_same(read_tensors(tmp_path / "a", "numpy"), expected)


def damaged_array(**parts: object) -> bytes:
    inner = packed(
        [parts.get("shape", [2]), parts.get("dtype", "float32"), parts.get("data", b"\0" * 8)]
    )
    return (
        b"\x81\xa1a"
        + b"\xc9"
        + struct.pack(">I", len(inner))
        + bytes([parts.get("kind", 1)])
        + inner
    )


@pytest.mark.parametrize(
    "content, message",
    [
        (damaged_array(shape=[TB]), "claims shape"),
        (damaged_array(shape=[3]), "claims shape"),
        (damaged_array(shape=[-1]), "impossible shape"),
        (damaged_array(dtype="object"), "type 'object'"),
        (damaged_array(kind=9), "unknown extension"),
        (damaged_array(data="text"), "is damaged"),
        (b"\x81\xa1a\xdd\xff\xff\xff\xff", "entries in"),
        (b"\x81\xa1a\xdf\xff\xff\xff\xff", "entries in"),
        (b"\x81\xa1a\xc6\xff\xff\xff\xff", "claims 4294967295 more"),
        (b"\x81\xa1a" + b"\x91" * 10_000, "deep"),
        (b"\x82\xa1a\x01\xa1a\x02", "repeated name"),
        (b"\x81\x90\x01", "impossible or repeated name"),
        (b"\x81\xa1a\xc1", "byte 3 is 0xc1"),
        (b"\x81\xa1\xff\x01", "damaged name"),
        (b"\x81\xa1a\x01\x01", "bytes after its end"),
        (
            packed(
                {
                    "a": {
                        "__msgpack_chunked_array__": 1,
                        "shape": {"0": 3},
                        "chunks": {"0": np.ones(2)},
                    }
                }
            ),
            "do not make up",
        ),
    ],
)
def test_damaged_flax(tmp_path, content, message):
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(FileFormatError, match=message):
        flax_msgpack.read(tmp_path / "a")


# Which format it is.


@pytest.mark.parametrize("content, message", [
    (b"", "is empty"),
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git lfs pull"),
    (b"<!DOCTYPE html><html>", "web page"),
    (b"\x1f\x8b\x08 gzip", "no known format"),
    (b"(dp0\n.", "no known format"),
    (b"PK\x03\x04 and no more", "damaged or cut off zip"),
])  # fmt: skip
def test_what_is_no_checkpoint(tmp_path, content, message):
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(FileFormatError, match=message):
        read_tensors(tmp_path / "model.safetensors")


def test_what_is_not_there(tmp_path):
    with pytest.raises(NotFoundError, match="no file"):
        read_tensors(tmp_path / "gone")
    with pytest.raises(NotFoundError, match="read_checkpoint"):
        read_tensors(tmp_path)
    with pytest.raises(NotFoundError, match=r"no weights.*flax_model\.msgpack"):
        read_checkpoint(tmp_path)
    with pytest.raises(ValueError, match="'jax'"):
        read_tensors(write_tensors(tmp_path, {"a": torch.ones(1)})[0], "jax")


@pytest.fixture(scope="module")
def samples(tmp_path_factory) -> list[bytes]:
    return [path.read_bytes() for path in every_format(tmp_path_factory.mktemp("formats"))]


@pytest.mark.parametrize("seed", range(8))
# Python's pickletools on damaged text
@pytest.mark.filterwarnings("ignore:invalid escape sequence:DeprecationWarning")
def test_no_damage_ends_in_anything_but_our_error(tmp_path, samples, seed):
    """Cut, flipped and inserted bytes.

    An answer or a HeadstartError, never a crash, a hang or another exception.
    """
    rng = random.Random(seed)
    path = tmp_path / "damaged"
    for _ in range(250):
        data = bytearray(rng.choice(samples))
        near = min(len(data), 3000)
        if rng.random() < 0.3:
            del data[rng.randrange(len(data)) :]
        for _ in range(rng.choice([1, 1, 3])):
            where = min(
                len(data),
                (
                    rng.randrange(near)
                    if rng.random() < 0.7
                    else max(0, len(data) - 1 - rng.randrange(near))
                ),
            )
            data[where : where + rng.choice([0, 1, 1])] = bytes(
                [rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)])]
            )
        path.unlink(missing_ok=True)
        path.write_bytes(data)
        for framework in ("torch", "numpy"):
            try:
                for tensor in read_tensors(path, framework).values():
                    tensor.sum() if framework == "torch" else tensor.tobytes()  # touches every byte
            except HeadstartError as error:
                assert "damaged" in str(error)


@pytest.mark.parametrize("ending", ["npz", "pth"])
def test_checksums_of_stored_members(tmp_path, ending):
    path = tmp_path / f"a.{ending}"
    if ending == "npz":
        write_npz(path, {"w": np.arange(50.0)})
    else:
        torch.save({"w": torch.arange(50.0)}, path)
    data = bytearray(path.read_bytes())
    value = np.float64(7).tobytes() if ending == "npz" else np.float32(7).tobytes()
    data[data.index(value) + len(value) - 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(FileFormatError, match="its checksum is wrong"):
        read_tensors(path)


def test_a_file_of_claims_fills_no_memory(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for i in range(8):
            file.create_dataset(f"w{i}", shape=(1 << 27,), dtype="f4", fillvalue=1.0)
    with pytest.raises(FileFormatError, match="claims 536,870,912 bytes"):
        read_tensors(tmp_path / "a.h5")


def test_names_are_bounded(tmp_path):
    """Each is looked up in tables of names: 300,000 took eight seconds."""
    entry = '{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    header = ("{" + ",".join(f'"{i}":{entry}' for i in range(100_001)) + "}").encode()
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(FileFormatError, match="has more than 100,000 names"):
        read_tensors(tmp_path / "a.safetensors")
