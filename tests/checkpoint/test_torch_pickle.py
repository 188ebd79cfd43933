"""torch's checkpoints: everything in them that is a tensor, and nothing in them that would run."""

import os
import pickle
import pickletools
import struct
import subprocess
import sys
import zipfile
from argparse import Namespace
from collections import Counter, OrderedDict, defaultdict
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
import torch

from checkpoint_samples import TB, Calls, assert_same, some_tensors
from conftest import golden_cases, golden_dir
from headstart.checkpoint import read_tensors, unwrap
from headstart.errors import FileFormatError


@pytest.fixture(params=["new", "old"])
def torch_save(request, tmp_path):
    """Saves as torch does now, or as torch before 1.6 did, and gives the path."""

    def save(value: object, name: str = "model.anything") -> Path:
        torch.save(value, tmp_path / name, _use_new_zipfile_serialization=request.param == "new")
        return tmp_path / name

    return save


class Surprise:
    """A class that nobody here knows."""

    def __init__(self):
        self.inner = {"deep": torch.ones(2)}


def test_torch_round_trip(torch_save):
    tensors = some_tensors() | {
        "parameter": torch.nn.Parameter(torch.randn(2, 3)),
        "eight": torch.randn(3).to(torch.float8_e5m2),
    }
    read = read_tensors(torch_save(tensors))
    assert_same(read, {name: value.detach() for name, value in tensors.items()})
    arrays = read_tensors(torch_save({"a": tensors["columns"]}), "numpy")
    np.testing.assert_array_equal(arrays["a"], tensors["columns"].numpy())


def test_a_training_checkpoint_gives_its_tensors_and_nothing_else(torch_save):
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.randn(2, 1, 4, 4)).sum().backward()
    optimizer.step()
    path = torch_save(
        {
            "model": {f"module.{name}": value for name, value in model.state_dict().items()},
            "optim": optimizer.state_dict(),
            "epoch": 3,
            "args": Namespace(
                lr=0.1, path=Path("/data"), when=datetime(2020, 1, 1), device=torch.device("cpu")
            ),
            "size": torch.Size([1]),
            "best": np.float64(0.5),
            "counts": Counter("ab"),
            "more": defaultdict(list),
            "set": {1, 2},
            "frozen": frozenset({3}),
            "j": 1j,
            "history": [("a", 1)] * 3,
            "ordered": OrderedDict(x=b"bytes"),
            "range": slice(1, 2),
        }
    )
    read = read_tensors(path)
    assert {name.split(".")[0] for name in read} == {"model", "optim"}
    assert "optim.state.0.momentum_buffer" in read
    assert_same(unwrap(read), dict(model.state_dict()))


class Net(torch.nn.Module):
    """A module as an author would pickle it whole."""

    def __init__(self):
        super().__init__()
        self.body = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
        self.list = torch.nn.ModuleList([torch.nn.Linear(2, 2, bias=False)])
        self.register_buffer("kept", torch.ones(3))
        self.register_buffer("derived", torch.ones(3), persistent=False)
        self.notes = {"not": "a tensor", "nor": [1, 2]}


def test_a_pickled_module_gives_its_state_dict_without_its_class(torch_save, monkeypatch):
    net = Net()
    path = torch_save(net)
    monkeypatch.delattr(sys.modules[__name__], "Net")
    assert_same(read_tensors(path), dict(net.state_dict()))


def test_objects_of_unknown_classes_keep_their_place(torch_save):
    assert_same(
        read_tensors(torch_save({"s": Surprise(), "n": 1})), {"s.inner.deep": torch.ones(2)}
    )


def test_pickled_arrays(torch_save):
    arrays = {
        "c": np.arange(6.0).reshape(2, 3),
        "f": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "big": np.arange(3, dtype=">i4"),
    }
    read = read_tensors(
        torch_save({"w": arrays, "names": np.array(["a", None], dtype=object)}), "numpy"
    )
    assert_same(
        {name: read[f"w.{name}"] for name in arrays}, arrays | {"big": np.arange(3, dtype="i4")}
    )
    assert len(read) == 3


def test_tied_and_overlapping_tensors_share_memory(torch_save):
    base = torch.arange(12.0)
    read = read_tensors(torch_save({"all": base, "again": base, "part": base[3:9].view(2, 3).t()}))
    assert read["all"].data_ptr() == read["again"].data_ptr()
    read["all"][3] = 100
    assert read["part"][0, 0] == 100


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_pickle_protocol(tmp_path, protocol):
    value = {
        "state_dict": OrderedDict(
            (name, each) for name, each in some_tensors().items() if each.dtype != torch.bfloat16
        )
    }
    torch.save(value, tmp_path / "a", pickle_protocol=protocol)
    assert_same(unwrap(read_tensors(tmp_path / "a")), dict(value["state_dict"]))


def hostile() -> dict[str, object]:
    """Pickles that would do something when Python's own reader opened them."""
    return {
        "system": Calls(os.system, "touch SENTINEL"),
        "eval": Calls(eval, "open('SENTINEL', 'w')"),
        "exec": Calls(exec, "open('SENTINEL', 'w')"),
        "getattr": Calls(getattr, Calls(__import__, "os"), "system"),
        "import": Calls(__import__, "this"),
        "subprocess": Calls(subprocess.Popen, ["touch", "SENTINEL"]),
        "open": Calls(open, "SENTINEL", "w"),
        "compile": Calls(compile, "1", "x", "eval"),
        "partial": Calls(__import__("functools").partial, os.system, "touch SENTINEL"),
        "map": Calls(list, Calls(map, os.system, ["touch SENTINEL"])),
        "operator": Calls(__import__("operator").methodcaller, "system", "touch SENTINEL"),
        "torch.load": Calls(torch.load, "SENTINEL"),
        "storage from file": Calls(torch.UntypedStorage.from_file, "/etc/passwd", False, 10),
        "storage": Calls(torch.storage._load_from_bytes, b"x"),
        "hub": Calls(torch.hub.load, "a/b", "c"),
        "numpy memmap": Calls(np.memmap, "/etc/passwd"),
        "numpy load": Calls(np.load, "SENTINEL", None, True),
        "pickle in pickle": Calls(pickle.loads, pickle.dumps(Calls(os.system, "touch SENTINEL"))),
        "bytearray": Calls(bytearray, TB),
        "rebuild with a call inside": Calls(
            torch._utils._rebuild_parameter, Calls(os.system, "touch SENTINEL"), True, OrderedDict()
        ),
        "state": Calls(OrderedDict, state={"__class__": Calls(os.system, "touch SENTINEL")}),
        "set of calls": {Calls(os.system, "touch SENTINEL")},
    }


@pytest.mark.parametrize("attack", sorted(hostile()))
@pytest.mark.parametrize("kind", ["zip", "old", "plain"])
def test_hostile_pickles_are_refused_and_nothing_runs(tmp_path, monkeypatch, attack, kind):
    monkeypatch.chdir(tmp_path)
    value = (
        {"weight": torch.ones(2), "payload": hostile()[attack]}
        if kind != "plain"
        else {"payload": hostile()[attack]}
    )
    path = tmp_path / "model.bin"
    if kind == "plain":
        path.write_bytes(pickle.dumps(value))
    else:
        torch.save(value, path, _use_new_zipfile_serialization=kind == "zip")
    if attack == "bytearray":  # known and harmless: no memory is taken
        assert len(read_tensors(path)) == (kind != "plain")
        return
    with pytest.raises(FileFormatError, match=r"nothing was run|damaged"):
        read_tensors(path)
    assert [each.name for each in tmp_path.iterdir()] == ["model.bin"]


def assembled(*steps: bytes) -> bytes:
    return b"\x80\x04" + b"".join(steps) + b"."


ONE_ELEMENT = b"K\x01"
INSTANCES = {
    "INST": b"(S'touch SENTINEL'\nios\nsystem\n",
    "OBJ": b"(cos\nsystem\nS'touch SENTINEL'\no",
    "extension": b"\x82\x01",
    "persistent": b"P0\n",
    "binary persistent": ONE_ELEMENT + b"Q",
    "build a name": b"cos\nsystem\n}b",
    "build a number": ONE_ELEMENT + b"}b",
    "reduce a number": ONE_ELEMENT + b")R",
    "reduce by text": b"cos\nsystem\nS'x'\nR",
    "new of a number": ONE_ELEMENT + b")\x81",
    "append to a number": ONE_ELEMENT + ONE_ELEMENT + b"a",
    "set items of a list": b"](" + ONE_ELEMENT * 2 + b"u",
    "buffer": b"\x97",
    "memo of nothing": b"h\x07",
    "empty stack": b"R",
    "no mark": ONE_ELEMENT + b"t",
    "unhashable key": b"}]K\x01s",
    "odd items": b"}(K\x01u",
    "huge text": b"\x8d" + struct.pack("<Q", TB) + b"x",
    "huge bytes": b"\x96" + struct.pack("<Q", TB) + b"x",
    "huge frame": b"\x95" + struct.pack("<Q", TB) + b"}",
    "far memo": b"}r\xff\xff\xff\xff" + b"j\xff\xff\xff\xfe",
}


@pytest.mark.parametrize("name", sorted(INSTANCES))
def test_hand_made_pickles(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "a.pkl"
    path.write_bytes(assembled(INSTANCES[name]))
    if name == "huge frame":  # a frame is only a hint
        assert read_tensors(path) == {}
        return
    with pytest.raises(FileFormatError, match=r"a\.pkl"):
        read_tensors(path)
    assert len(list(tmp_path.iterdir())) == 1


def rezipped(path: Path, change) -> None:
    """Rewrites the entries of a torch file as `change(name, data)` says."""
    with zipfile.ZipFile(path) as archive:
        entries = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in entries.items():
            for new, content in change(name, data).items():
                archive.writestr(new, content)


def with_pickle(path: Path, edit) -> None:
    rezipped(path, lambda name, data: {name: edit(data) if name.endswith("data.pkl") else data})


@pytest.mark.parametrize("what, old, new, message", [
    ("size beyond the storage", b"K\x03K\x04\x86", b"K\x03K\x05\x86", "claims shape"),
    ("terabytes", b"K\x03K\x04\x86", b"\x8a\x06\0\0\0\0\0\x01K\x04\x86", "claims shape"),
    ("negative size", b"K\x03K\x04\x86", b"J\xff\xff\xff\xffK\x04\x86", "impossible shape"),
    ("stride beyond the storage", b"K\x04K\x01\x86", b"K\x7fK\x01\x86", "claims shape"),
    ("negative stride", b"K\x04K\x01\x86", b"J\xfc\xff\xff\xffK\x01\x86", "impossible shape"),
    ("unknown storage", b"FloatStorage", b"FancyStorage", "storage of unknown type"),
    ("another storage type", b"FloatStorage", b"ComplexDoubleStorage", "claims shape"),
    ("a key outside", b"X\x01\0\0\x000", b"X\x07\0\0\0../../0", "not in the archive"),
    ("a text for an offset", b"QK\0", b"QX\x01\0\0\0a", "without a storage"),
])  # fmt: skip
def test_tampered_tensors(tmp_path, what, old, new, message):
    path = tmp_path / "a.bin"
    torch.save({"w": torch.randn(3, 4)}, path)
    with_pickle(
        path,
        lambda data: (
            data.replace(old, new, 1)
            if old in data
            else pytest.fail(f"{what}: pickle is not as expected")
        ),
    )
    with pytest.raises(FileFormatError, match=message):
        read_tensors(path)


def test_an_expanded_tensor_cannot_fill_the_memory(tmp_path):
    torch.save({"w": torch.ones(1).expand(1 << 40)}, tmp_path / "bomb")
    with pytest.raises(FileFormatError, match="fill the memory"):
        read_tensors(tmp_path / "bomb")
    torch.save({"w": torch.arange(3.0).expand(5, 3)}, tmp_path / "fine")
    assert torch.equal(read_tensors(tmp_path / "fine")["w"], torch.arange(3.0).expand(5, 3))


def test_a_pickle_of_ever_more_references_ends(tmp_path):
    steps = b"]\x94K\x01a"
    for level in range(60):  # each list holds the one before it twice: 2^60 entries
        steps += b"]\x94h" + bytes([level]) + b"ah" + bytes([level]) + b"a"
    (tmp_path / "a").write_bytes(assembled(steps))
    with pytest.raises(FileFormatError, match="more than 100,000 names"):
        read_tensors(tmp_path / "a")


@pytest.mark.parametrize("step", [b"(", b"]", b"N", b"N0"])
def test_a_pickle_of_millions_of_steps_is_refused(tmp_path, step):
    """A checkpoint of 10,000 tensors has half a million."""
    path = tmp_path / "long.pth"
    path.write_bytes(b"\x80\x02" + step * 2_100_000 + b"N.")
    with pytest.raises(FileFormatError, match="a pickle of more than 2,000,000 steps"):
        read_tensors(path)


def test_deep_and_circular_pickles_end(tmp_path):
    (tmp_path / "deep").write_bytes(assembled(b"]" * 100_000 + b"a" * 99_999))
    (tmp_path / "ring").write_bytes(assembled(b"]\x94h\0a"))
    for name in ("deep", "ring"):
        with pytest.raises(FileFormatError, match="deep"):
            read_tensors(tmp_path / name)


def test_two_tensors_of_one_name(torch_save):
    with pytest.raises(FileFormatError, match=r"two tensors named a\.b"):
        read_tensors(torch_save({"a": {"b": torch.ones(1)}, "a.b": torch.ones(1)}))


def test_lazily_conjugated_tensors_are_refused(torch_save):
    with pytest.raises(FileFormatError, match="conjugated"):
        read_tensors(torch_save({"a": torch.view_as_complex(torch.randn(3, 2)).conj()}))


def test_sparse_and_quantized_tensors_are_not_silently_lost(torch_save):
    with pytest.raises(FileFormatError, match="nothing was run"):
        read_tensors(torch_save({"a": torch.eye(3).to_sparse()}))


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda name, data: {} if name.endswith("data/0") else {name: data}, "not in the archive"),
        (
            lambda name, data: {name: data[:-1]} if name.endswith("data/0") else {name: data},
            "claims shape",
        ),
        (
            lambda name, data: {name: b"big"} if name.endswith("byteorder") else {name: data},
            "big-endian",
        ),
        (
            lambda name, data: (
                {name: data, "other/data.pkl": data} if name.endswith("data.pkl") else {name: data}
            ),
            "2 torch pickles",
        ),
        (lambda name, data: {name: data, "model/constants.pkl": b"x"}, "TorchScript"),
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_damaged_torch_archives(tmp_path, change, message):
    torch.save({"w": torch.randn(3, 4)}, tmp_path / "a.bin")
    rezipped(tmp_path / "a.bin", change)
    with pytest.raises(FileFormatError, match=rf"{message}|two entries"):
        read_tensors(tmp_path / "a.bin")


def test_old_files_are_checked_to_the_last_byte(tmp_path):
    torch.save({"w": torch.randn(3, 4)}, tmp_path / "a", _use_new_zipfile_serialization=False)
    data = (tmp_path / "a").read_bytes()
    (tmp_path / "a").write_bytes(data[:-1])
    with pytest.raises(FileFormatError, match="cut off"):
        read_tensors(tmp_path / "a")
    (tmp_path / "a").write_bytes(data.replace((12).to_bytes(8, "little"), TB.to_bytes(8, "little")))
    with pytest.raises(FileFormatError, match="cut off"):
        read_tensors(tmp_path / "a")


def golden_torch_files() -> list[str]:
    return [
        f"{family}/{case}"
        for family in ("beit", "bit", "cvt", "dalle", "yoso")
        for case in golden_cases("authors", family)
    ]


@pytest.mark.parametrize("case", golden_torch_files())
def test_authors_files_are_read_as_torch_reads_them(case):
    files = [
        path
        for path in golden_dir("authors", *case.split("/")).iterdir()
        if path.suffix in (".pth", ".pt", ".model", ".tar")
    ]
    for path in files:
        theirs = torch.load(path, weights_only=True)
        flat: dict[str, torch.Tensor] = {}
        todo = [("", theirs)]
        while todo:
            name, value = todo.pop()
            if isinstance(value, dict):
                todo += [
                    (f"{name}.{key}" if name else str(key), child) for key, child in value.items()
                ]
            elif isinstance(value, torch.Tensor):
                flat[name] = value
        assert flat
        assert_same(dict(sorted(read_tensors(path).items())), dict(sorted(flat.items())))
        assert not any(
            name.startswith(("model_state_dict.", "state_dict.", "module."))
            for name in unwrap(read_tensors(path))
        )


def test_the_dalle_encoder_is_read_without_its_classes():
    folder = golden_dir("authors", "dalle", "encoder_tiny")
    assert "dall_e" not in sys.modules
    assert_same(
        read_tensors(folder / "encoder.pkl"),
        torch.load(folder / "encoder_state_dict.pt", weights_only=True),
    )
    with pytest.raises(pickle.UnpicklingError):
        torch.load(folder / "encoder.pkl", weights_only=True)


def test_no_instruction_of_pickle_is_forgotten():
    """Every opcode of Python's pickle is either handled or refused on purpose."""
    from headstart.checkpoint import pickle_machine

    refused = {"PERSID", "INST", "OBJ", "EXT1", "EXT2", "EXT4", "NEXT_BUFFER", "READONLY_BUFFER"}
    inline = {
        "PROTO",
        "FRAME",
        "STOP",
        "GLOBAL",
        "MEMOIZE",
        "PUT",
        "BINPUT",
        "LONG_BINPUT",
        "GET",
        "BINGET",
        "LONG_BINGET",
    }
    known = inline | pickle_machine.VALUES | pickle_machine.CONSTANTS.keys()
    missing = (
        {op.name for op in pickletools.opcodes}
        - known
        - {name[1:].upper() for name in vars(pickle_machine.Machine)}
    )
    assert missing == refused


@pytest.mark.parametrize("end", [b"K\x01u.", b"K\x01s."])
def test_keys_are_flat(tmp_path, end):
    """Hashing a tuple nested 150,000 deep overflows the stack of the interpreter."""
    body = b"\x80\x02}" + (b"(" if end[-2:-1] == b"u" else b"") + b"K\x01" + b"\x85" * 150_000 + end
    (tmp_path / "a.pth").write_bytes(body)
    with pytest.raises(FileFormatError, match="a value of type tuple as a key"):
        read_tensors(tmp_path / "a.pth")


def test_a_shared_list_does_not_multiply(tmp_path):
    """Ten lists that each hold the one before twenty times are 10^13 names."""
    value = [0]
    for _ in range(10):
        value = [value] * 20
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"x" * 300: value}, protocol=2))
    with pytest.raises(FileFormatError, match="has more than 1|names of more"):
        read_tensors(tmp_path / "a.pkl")
