"""Whole files of every format that headstart reads, to damage."""

import io
import json
import pickle
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fuzz.formats import IMAGES, NETWORKS


def make_seeds(base: Path) -> Path:
    """Writes whole files of every format into a folder."""
    base.mkdir(parents=True, exist_ok=True)
    _weights(base)
    _folders(base)
    _results_files(base)
    _tables(base)
    _images(base)
    return base


def _weights(base: Path) -> None:
    import h5py
    import msgpack
    import torch
    from torch import nn

    from headstart.checkpoint import write_npz, write_tensors

    generator = torch.Generator().manual_seed(0)
    tensors = {
        "a.weight": torch.randn(3, 4, generator=generator),
        "a.bias": torch.zeros(5).bfloat16(),
        "n": torch.tensor(3),
        "t": torch.randn(4, 2, generator=generator).t(),
    }
    write_tensors(base / "one", tensors)
    (base / "one" / "model.safetensors").rename(base / "t.safetensors")
    write_tensors(base / "sharded", tensors, max_shard_size=60)
    torch.save({"model": tensors, "epoch": 3}, base / "t.pth")
    torch.save(tensors, base / "old.pth", _use_new_zipfile_serialization=False)
    module = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    torch.save(module, base / "module.pth")
    torch.save(module, base / "module_old.pth", _use_new_zipfile_serialization=False)
    arrays = {"w/kernel": np.arange(6.0).reshape(2, 3), "b": np.arange(3, dtype=np.int32)}
    (base / "plain.pkl").write_bytes(pickle.dumps(arrays, protocol=2))
    write_npz(base / "t.npz", arrays)
    write_npz(base / "packed.npz", arrays, compress=True)
    np.save(base / "t.npy", arrays["w/kernel"])
    with h5py.File(base / "t.h5", "w") as file:
        for name, array in arrays.items():
            file[name] = array
        file.create_dataset("packed", data=np.zeros((9, 9)), compression="gzip")

    def extension(array: np.ndarray) -> msgpack.ExtType:
        values = (array.shape, array.dtype.name, array.tobytes())
        return msgpack.ExtType(1, msgpack.packb(values))

    tree = {"a": {"kernel": extension(arrays["w/kernel"])}, "b": extension(arrays["b"])}
    (base / "t.msgpack").write_bytes(msgpack.packb(tree))


def _folders(base: Path) -> None:
    import torch

    from headstart import (
        BeitImageProcessor,
        BitImageProcessor,
        ConvNextImageProcessor,
        YosoTokenizer,
        optimize,
    )
    from tiny_networks import NETWORKS as TINY

    torch.manual_seed(0)
    for name in NETWORKS:
        TINY[name]().save_pretrained(base / name)
    for name, make in (
        ("bit", BitImageProcessor),
        ("beit", BeitImageProcessor),
        ("cvt", ConvNextImageProcessor),
    ):
        make().save_pretrained(base / name)
    tokenizer = YosoTokenizer.train(["a cat sat on the mat", "a cat ran"], vocab_size=280)
    tokenizer.save_pretrained(base / "tok")
    shutil.copytree(base / "tok", base / "bpe")
    (base / "bpe" / "tokenizer.json").unlink()
    network = TINY["bit"]().eval()
    example = {"pixel_values": torch.zeros(1, 3, 32, 32)}
    for engine in ("torch", "openvino", "onnxruntime"):
        folder = base / ("optimized" if engine == "torch" else engine)
        optimize(network, example=example, engine=engine).save_pretrained(folder)


def _write(path: Path, values: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values))


def _results_files(base: Path) -> None:
    import yaml

    from headstart.recipe import Recipe

    metrics = {"accuracy": 0.5, "loss": 1.25}
    evaluated = {"examples": 9, "metrics": metrics, "confidence_interval_95": [0.1, 0.9]}
    spread = {"mean": 0.5, "confidence_interval_95": [0.1, 0.9], "values": [0.4, 0.6]}
    draws = {"seeds": [0, 1], "split": "test", "kept": 0, "metrics": {"accuracy": spread}}
    _write(
        base / "results.json",
        {
            "task": "image-classification",
            "model": "m",
            "headline": "accuracy",
            "evaluations": {"test": evaluated},
            "draws": draws,
            "finished": "now",
        },
    )
    recipe = Recipe(class_weights={"ant": 2.0}).to_dict()
    _write(
        base / "run.json",
        {
            "data": "d",
            "model": "m",
            "task": "image-classification",
            "revision": None,
            "options": {"seed": 0},
            "recipe": recipe,
            "draws": 1,
        },
    )
    choice = {"max_error": 0.05, "threshold": 0.5, "refused": 0.1, "error": None}
    _write(
        base / "confidence.json",
        {"temperature": 1.5, "examples": 30, "max_error": 0.05, "choices": [choice]},
    )
    lines = [json.dumps({"step": i, "loss": 1 / (i + 1)}) for i in range(3)]
    (base / "metrics.jsonl").write_text("\n".join(lines))
    (base / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    _checkpoint(base)


def _checkpoint(base: Path) -> None:
    """A checkpoint that a run goes on from, and its files beside it."""
    import torch
    from safetensors.torch import save_file

    from headstart.training.checkpoints import MANIFEST, STATE, TENSORS, file_hash

    (base / "weights.yaml").write_text("ant: 2\nbee: 1.5\n'3': .5\n")
    palette = [[0, 0, 0], [255, 0, 0]]
    _write(base / "seg.json", {"classes": ["a", "b"], "palette": palette, "ignore_index": [7]})
    step = base / "resume" / "step-1"
    step.mkdir(parents=True)
    save_file({"w": torch.zeros(3)}, step / TENSORS)
    _write(step / STATE, {"step": 1, "values": [1, 2]})
    sizes = {
        name: {"size": (step / name).stat().st_size, "sha256": file_hash(step / name)}
        for name in (TENSORS, STATE)
    }
    _write(step / MANIFEST, sizes)
    shutil.copy(step / MANIFEST, base / "manifest.json")
    shutil.copy(step / STATE, base / "state.json")
    shutil.copy(step / TENSORS, base)


def _pixels(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (8, 9, 3), dtype=np.uint8)


def _images(base: Path) -> None:
    for name, kind in IMAGES.items():
        Image.fromarray(_pixels(0)).save(base / f"a.{name}", kind)
    Image.fromarray(_pixels(0)[..., 0] % 3).save(base / "mask.png")
    colors = np.eye(3, dtype=np.uint8) * 255
    Image.fromarray(colors[_pixels(1)[..., 0] % 3]).save(base / "colors.png")


def _tables(base: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    table = base / "table"
    table.mkdir()
    rows = [{"image": f"{i}.png", "label": "ab"[i % 2]} for i in range(4)]
    for i, row in enumerate(rows):
        Image.fromarray(_pixels(i)).save(table / row["image"])
    _write(base / "classes.json", {"classes": ["a", "b"]})
    (table / "t.csv").write_text(
        "image,label\n" + "".join(f"{r['image']},{r['label']}\n" for r in rows)
    )
    (base / "t.tsv").write_text((table / "t.csv").read_text().replace(",", "\t"))
    (base / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), base / "t.parquet")
    images = np.stack([_pixels(i) for i in range(4)])
    np.savez(base / "images.npz", images=images, labels=np.array([0, 1, 0, 1]))
    np.savez_compressed(base / "images2.npz", images=images[..., 0], labels=np.array(list("abab")))
    for name, members in (
        ("t.tar", [(f"{r['label']}/{r['image']}", r["image"]) for r in rows]),
        ("w.tar", [(f"{i}.png", r["image"]) for i, r in enumerate(rows)]),
    ):
        with tarfile.open(base / name, "w") as tar:
            for i, (member, file) in enumerate(members):
                tar.add(table / file, member)
                if name == "w.tar":
                    for kind, data in (("cls", rows[i]["label"]), ("json", '{"x": 1}')):
                        info = tarfile.TarInfo(f"{i}.{kind}")
                        info.size = len(data)
                        tar.addfile(info, io.BytesIO(data.encode()))
    _text_tables(base)


def _text_tables(base: Path) -> None:
    """Tables and files of every text task."""
    texts = [{"text": f"word {i}", "label": "xy"[i % 2]} for i in range(5)]
    (base / "text.jsonl").write_text("\n".join(map(json.dumps, texts)))
    (base / "text.csv").write_text(
        "text,label\n" + "".join(f'"a, {r["text"]}",{r["label"]}\n' for r in texts)
    )
    (base / "text.tsv").write_text(
        "text\tlabel\n" + "".join(f"{r['text']}\t{r['label']}\n" for r in texts)
    )
    (base / "plain.txt").write_text("one\ntwo words\n\nthree\n")
    tagged = [{"tokens": ["a", "b"], "tags": ["X", "O"]} for _ in range(3)]
    (base / "tok.jsonl").write_text("\n".join(map(json.dumps, tagged)))
    (base / "a.conll").write_text("-DOCSTART- O\n\nEva B\nin O\n\nRome L\n")
    (base / "u.conll").write_text("# id = 1\n1\tthe\tthe\tDET\n2-3\tx\tx\tX\n2\tend\tend\tN\n\n")
    choices = [{"question": "q", "choices": ["a", "b"], "label": i % 2} for i in range(3)]
    (base / "mc.jsonl").write_text("\n".join(map(json.dumps, choices)))
    answers = {"text": ["cat"], "answer_start": [2]}
    entry = {"id": "1", "question": "who?", "answers": [{"text": "cat", "answer_start": 2}]}
    paragraph = {"context": "a cat sat", "qas": [entry]}
    _write(base / "squad.json", {"version": "1", "data": [{"paragraphs": [paragraph]}]})
    questions = [{"question": "who?", "context": "a cat", "answers": answers} for _ in range(3)]
    (base / "qa.jsonl").write_text("\n".join(map(json.dumps, questions)))
