"""Every format that headstart reads: whole files to start from, and the call that reads one.

A base folder holds the seeds (`fuzz.seeds.make_seeds`). For each input, a fresh folder is filled
with the files that the format needs beside the damaged one, and `read` is called with it.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Format:
    """A format.

    Args:
        file: Name of the damaged file in its folder.
        read: Reads it, given the folder.
        seeds: Names of whole files in the base folder.
        kind: How it is damaged: "bytes", "json", "lines" (of JSON), "text" or "zip".
        beside: A folder of the base folder whose files lie beside the damaged one.
    """

    file: str
    read: Callable[[Path], Any]
    seeds: list[str]
    kind: str = "bytes"
    beside: str = ""
    seeds_of: dict[str, str] = field(default_factory=dict)


def _tensors(file: str) -> Callable[[Path], Any]:
    def read(folder: Path) -> None:
        from headstart.checkpoint import read_tensors

        for value in read_tensors(folder / file, "torch").values():
            value.sum() if value.numel() < 1 << 20 else value.shape  # noqa: B018 - touches the pages

    return read


def _checkpoint(folder: Path) -> None:
    from headstart.checkpoint import read_checkpoint

    read_checkpoint(folder / "model.safetensors.index.json")


def _metadata(folder: Path) -> None:
    from headstart.checkpoint import read_metadata

    read_metadata(folder / "model.safetensors")
    _tensors("model.safetensors")(folder)


def _config(folder: Path) -> None:
    from headstart import AutoConfig

    config = AutoConfig.from_pretrained(folder)
    assert config.to_json_string() and config.num_labels >= 0
    config.differences()


def _network(folder: Path) -> None:
    from headstart.loading import family_of

    family, _ = family_of(folder)
    name = family.tasks.get("image-classification") or family.tasks["masked-language-modeling"]
    family.load(name).from_pretrained(folder, ignore_mismatched_sizes=True)


def _processor(folder: Path) -> None:
    from headstart import AutoImageProcessor

    processor = AutoImageProcessor.from_pretrained(folder)
    processor.to_json_string()
    processor(np.zeros((20, 30, 3), np.uint8), return_tensors="np")


def _tokenizer(folder: Path) -> None:
    from headstart import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer(["a cat sat", "on the mat"], padding=True, truncation=True)
    tokenizer(["a cat sat", "on"], padding=True, truncation=True, max_length=8)


def _results(folder: Path) -> None:
    from headstart.pipelines.base import read_results, task_of
    from headstart.training.result import read_spread, saved_evaluations

    for read in (task_of, saved_evaluations, read_results, read_spread):
        read(folder)


def _request(folder: Path) -> None:
    from headstart.recipe import Recipe
    from headstart.training.request import Request

    Recipe.from_dict(Request.read(folder).recipe)


def _confidence(folder: Path) -> None:
    from headstart.metrics.calibration import Confidence

    found = Confidence.read(folder)
    found.choice()
    found.write(folder)


def _metrics(folder: Path) -> None:
    from headstart.training.log import read_metrics

    read_metrics(folder / "metrics.jsonl")


def _resume(folder: Path) -> None:
    from headstart.training.checkpoints import load_checkpoint

    load_checkpoint(folder)


def _recipe(folder: Path) -> None:
    from headstart.recipe import Recipe, resolve_recipe

    resolve_recipe(Recipe(), folder / "recipe.yaml")


def _class_weights(folder: Path) -> None:
    from headstart.recipe import Recipe, read_class_weights

    Recipe().updated({"class_weights": read_class_weights(str(folder / "weights.yaml"))})


def _segmentation_classes(folder: Path) -> None:
    from headstart.data.masks import read_classes

    read_classes(folder / "classes.json").table()


def _optimized(folder: Path) -> None:
    from headstart.engine.model import load

    str(load(folder).report)


def _images(file: str) -> Callable[[Path], Any]:
    def read(folder: Path) -> None:
        from headstart.data.images import read_images
        from headstart.data.options import DataOptions

        read_images(folder / file, DataOptions(val_fraction=0.5, workers=1, skip_bad=True))

    return read


def _labelled(file: str) -> Callable[[Path], Any]:
    return _texts(file, "read_labelled")


def _texts(file: str, reader: str) -> Callable[[Path], Any]:
    def read(folder: Path) -> None:
        from headstart.data import text_rows, texts
        from headstart.data.options import DataOptions

        data = texts.read_texts(folder / file, DataOptions(), getattr(text_rows, reader))
        data.fingerprint()

    return read


def _predicted(file: str) -> Callable[[Path], Any]:
    def read(folder: Path) -> None:
        from headstart.data.text_files import read_inputs

        read_inputs("question-answering", [folder / file], [], "who?", False)

    return read


def _image(file: str) -> Callable[[Path], Any]:
    def read(folder: Path) -> None:
        from headstart.data.cache import inspect
        from headstart.images.decode import load_image

        inspect(folder / file)
        load_image(folder / file)

    return read


def _mask(folder: Path) -> None:
    from headstart.data.masks import read_values

    read_values(folder / "mask.png", np.eye(3, dtype=np.uint8) * 255)


IMAGES = {
    "png": "PNG", "jpeg": "JPEG", "gif": "GIF", "bmp": "BMP", "tiff": "TIFF", "webp": "WEBP",
    "avif": "AVIF", "jp2": "JPEG2000",
}  # fmt: skip
NETWORKS = ("bit", "beit", "cvt", "yoso")

FORMATS: dict[str, Format] = {
    "safetensors": Format("model.safetensors", _metadata, ["t.safetensors"]),
    "pth_zip": Format("t.pth", _tensors("t.pth"), ["t.pth", "module.pth"], "zip"),
    "pth_old": Format("t.pth", _tensors("t.pth"), ["old.pth", "plain.pkl", "module_old.pth"]),
    "npz": Format("t.npz", _tensors("t.npz"), ["t.npz", "packed.npz"], "zip"),
    "npy": Format("t.npy", _tensors("t.npy"), ["t.npy"]),
    "h5": Format("t.h5", _tensors("t.h5"), ["t.h5"]),
    "msgpack": Format("t.msgpack", _tensors("t.msgpack"), ["t.msgpack"]),
    "index": Format(
        "model.safetensors.index.json",
        _checkpoint,
        ["sharded/model.safetensors.index.json"],
        "json",
        "sharded",
    ),
    "config_info": Format(
        "config.json", _config, [f"{name}/config.json" for name in NETWORKS], "json"
    ),
    **{
        f"config_{name}": Format("config.json", _network, [f"{name}/config.json"], "json", name)
        for name in NETWORKS
    },
    "preproc": Format(
        "preprocessor_config.json",
        _processor,
        [f"{name}/preprocessor_config.json" for name in ("bit", "beit", "cvt")],
        "json",
    ),
    "tok_config": Format(
        "tokenizer_config.json", _tokenizer, ["tok/tokenizer_config.json"], "json", "tok"
    ),
    "tok_special": Format(
        "special_tokens_map.json", _tokenizer, ["tok/special_tokens_map.json"], "json", "tok"
    ),
    "tokenizer_json": Format("tokenizer.json", _tokenizer, ["tok/tokenizer.json"], "json", "tok"),
    "vocab": Format("vocab.json", _tokenizer, ["bpe/vocab.json"], "json", "bpe"),
    "merges": Format("merges.txt", _tokenizer, ["bpe/merges.txt"], "text", "bpe"),
    "results_json": Format("results.json", _results, ["results.json"], "json"),
    "resume_run": Format("run.json", _request, ["run.json"], "json"),
    "confidence_json": Format("confidence.json", _confidence, ["confidence.json"], "json"),
    "resume_metrics": Format("metrics.jsonl", _metrics, ["metrics.jsonl"], "lines"),
    "ckpt_manifest": Format("step-1/manifest.json", _resume, ["manifest.json"], "json", "resume"),
    "ckpt_state": Format("step-1/state.json", _resume, ["state.json"], "json", "resume"),
    "resume_tensors": Format(
        "step-1/tensors.safetensors", _resume, ["tensors.safetensors"], "bytes", "resume"
    ),
    "recipe": Format("recipe.yaml", _recipe, ["recipe.yaml"], "text"),
    "class_weights": Format("weights.yaml", _class_weights, ["weights.yaml"], "text"),
    "seg_classes": Format("classes.json", _segmentation_classes, ["seg.json"], "json"),
    "opt_json": Format(
        "headstart_optimized.json",
        _optimized,
        ["optimized/headstart_optimized.json"],
        "json",
        "optimized",
    ),
    **{
        f"opt_{ending}": Format(
            f"engine/{file}", _optimized, [f"{engine}/engine/{file}"], kind, engine
        )
        for ending, engine, file, kind in (
            ("onnx", "onnxruntime", "onnxruntime.onnx", "bytes"),
            ("xml", "openvino", "openvino.xml", "text"),
            ("ovbin", "openvino", "openvino.bin", "bytes"),
        )
    },
    "classes_json": Format("classes.json", _images("t.csv"), ["classes.json"], "json", "table"),
    "csv": Format("t.csv", _images("t.csv"), ["table/t.csv"], "text", "table"),
    "tsv": Format("t.tsv", _images("t.tsv"), ["t.tsv"], "text", "table"),
    "jsonl": Format("t.jsonl", _images("t.jsonl"), ["t.jsonl"], "lines", "table"),
    "parquet": Format("t.parquet", _images("t.parquet"), ["t.parquet"], "bytes", "table"),
    "data_npz": Format("t.npz", _images("t.npz"), ["images.npz", "images2.npz"], "zip"),
    "tar": Format("t.tar", _images("t.tar"), ["t.tar", "w.tar"]),
    "text_csv": Format("t.csv", _labelled("t.csv"), ["text.csv"], "text"),
    "text_tsv": Format("t.tsv", _labelled("t.tsv"), ["text.tsv"], "text"),
    "text_jsonl": Format("t.jsonl", _labelled("t.jsonl"), ["text.jsonl"], "lines"),
    "plain_txt": Format("t.txt", _texts("t.txt", "read_plain"), ["plain.txt"], "text"),
    "tok_jsonl": Format("t.jsonl", _texts("t.jsonl", "read_tagged"), ["tok.jsonl"], "lines"),
    "conll": Format("t.conll", _texts("t.conll", "read_tagged"), ["a.conll", "u.conll"], "text"),
    "mc_jsonl": Format("t.jsonl", _texts("t.jsonl", "read_choices"), ["mc.jsonl"], "lines"),
    "squad": Format("t.json", _texts("t.json", "read_questions"), ["squad.json"], "json"),
    "qa_predict": Format("t.jsonl", _predicted("t.jsonl"), ["qa.jsonl"], "lines"),
    "mask_png": Format("mask.png", _mask, ["mask.png", "colors.png"]),
    **{name: Format(f"a.{name}", _image(f"a.{name}"), [f"a.{name}"]) for name in IMAGES},
}


def fill(folder: Path, base: Path, form: Format, content: bytes) -> Path:
    """Puts the damaged file, and what lies beside it, into an empty folder."""
    if form.beside:
        shutil.copytree(base / form.beside, folder, dirs_exist_ok=True)
    path = folder / form.file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.write_bytes(content)
    return folder
