"""A file that `export(full=True)` wrote: opened, run, and checked against the answers in it."""

import base64
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headstart.checkpoint.documents import as_dataclass, check_kind, parse_json
from headstart.engine.engines import engine
from headstart.errors import ConfigError, FileFormatError, InputError

Array = NDArray[Any]
Run = Callable[[Array], dict[str, Array]]
VERSION = "1"
SHOWN = 5  # labels where no number is given
TOLERANCE = 0.01  # of a score: pixels may be one gray level from the pipeline's


@dataclass(frozen=True)
class Example:
    """An image in a file, and PyTorch's answer.

    Args:
        shape: Height, width and channels.
        pixels: uint8 in that order, as base64.
        classes: Indices of the highest scores, best first.
        scores: Their scores.
        refused: Whether the answer is refused.
    """

    shape: list[int]
    pixels: str
    classes: list[int]
    scores: list[float]
    refused: bool

    def image(self) -> Array:
        """The image, uint8 (H, W, C).

        Raises:
            FileFormatError: The text holds another number of pixels.
        """
        try:
            data = base64.b64decode(self.pixels, validate=True)
            return np.frombuffer(data, np.uint8).reshape(self.shape)
        except ValueError as error:
            raise FileFormatError(f"a test image in the file is damaged: {error}") from error


@dataclass(frozen=True)
class Checked:
    """How a file answered for one of its images.

    Args:
        shape: Height, width and channels of the image.
        expected: Label that PyTorch gave.
        found: Label that the file gave.
        difference: Largest difference of a score, as a fraction of the largest (or of 1).
        right: Whether class and refusal are the same, and scores within 0.01.
    """

    shape: tuple[int, ...]
    expected: str
    found: str
    difference: float
    right: bool


class FullFile:
    """A file that `export(full=True)` wrote, opened.

    Args:
        path: An `.onnx` file, or an OpenVINO `.xml` with its `.bin` beside it.

    Raises:
        FileFormatError: A file without preprocessing and test images, or a damaged one.
        MissingExtraError: Its runtime is not installed.
        InputError: No such file.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            what = f"{path} is a folder" if path.is_dir() else f"there is no file {path}"
            raise InputError(f"{what}; expected a file that `headstart export --full` wrote")
        opens = {".onnx": _open_onnx, ".xml": _open_openvino}
        if path.suffix not in opens:
            raise FileFormatError(
                f"{path} is not an ONNX (.onnx) or OpenVINO (.xml) file; expected one that"
                " `headstart export --full` wrote"
            )
        self.path = path
        self.run, facts = opens[path.suffix](path)
        if facts.get("full") != VERSION:
            raise FileFormatError(
                f"{path} holds no preprocessing and no test images; write it with: headstart export"
                " MODEL --out FILE --full"
            )
        labels = parse_json(facts.get("labels", ""), f"{path}: labels")
        tests = parse_json(facts.get("tests", ""), f"{path}: tests")
        for value, kind, name in ((labels, list[str], "labels"), (tests, list[Any], "tests")):
            check_kind(value, kind, f"{path}: {name}")
        self.labels: list[str] = labels
        self.kind = facts.get("kind", "")
        self.threshold = float(facts.get("threshold", "0"))
        # files of earlier versions do not say it; their p-values alone refuse nothing
        self.refuses = facts.get("refuses", str(self.threshold > 0)) == "True"
        minimums = parse_json(facts.get("minimums", "null"), f"{path}: minimums")
        if minimums is not None:
            check_kind(minimums, list[float], f"{path}: minimums")
            if len(minimums) != len(labels):
                raise FileFormatError(f"{path}: {len(minimums)} minimums for {len(labels)} labels")
        self.minimums: list[float] | None = minimums
        self.examples = [as_dataclass(Example, each, f"{path}: tests") for each in tests]

    def __call__(self, image: Array) -> dict[str, Array]:
        """The outputs for an image, uint8 (H, W, C): `scores` (1, V), `pixel_values`, and for
        classes `label` (1,), `refused` (1,), and `p_value` (1,) where it is known.
        """
        return self.run(image)

    def check(self) -> list[Checked]:
        """Runs the images in the file and compares with the answers in it."""
        return [self._checked(each) for each in self.examples]

    def _checked(self, example: Example) -> Checked:
        out = self(example.image())
        scores, classes = out["scores"][0], example.classes
        best = classes[0] if "label" in out else 0
        if not classes or max(classes) >= len(scores) or len(classes) != len(example.scores):
            raise FileFormatError(f"{self.path}: a test has an answer of other classes")
        found = int(out["label"][0]) if "label" in out else best
        expected = np.array(example.scores)
        gap = float(np.abs(scores[classes] - expected).max() / max(1.0, np.abs(expected).max()))
        refused = "refused" in out and bool(out["refused"][0])
        return Checked(
            tuple(example.shape),
            self.labels[best],
            self.labels[found],
            gap,
            found == best and refused == example.refused and gap <= TOLERANCE,
        )


@dataclass(frozen=True)
class Answer:
    """What a file gives for one image.

    Args:
        scores: (V,).
        refused: Whether the answer is refused, by the threshold in the file.
    """

    scores: Array
    refused: bool


class FullClassifier:
    """A file as `headstart.data.predictions.classify` takes a pipeline.

    Args:
        path: What `export(full=True)` wrote.
        refuse: Whether to refuse answers as the file does.
        label_threshold: Minimum probability of a label of a multi-label model.

    Attributes:
        kind: `problem_type` of the classifier.
        labels: Names of the classes or targets.
        key: Hash of the file.
        reference: Not None where answers have p-values.
        model: None, as the engine computes on its own threads.

    Raises:
        ConfigError: It is to refuse, and the file has no threshold.
    """

    model = None

    def __init__(self, path: Path, refuse: bool = False, label_threshold: float = 0.5) -> None:
        self.file, self.refuses, self.label_threshold = FullFile(path), refuse, label_threshold
        self.kind, self.labels = self.file.kind, self.file.labels
        whole = hashlib.sha256()
        for each in (path, path.with_suffix(".bin")) if path.suffix == ".xml" else (path,):
            with each.open("rb") as opened:
                whole.update(hashlib.file_digest(opened, "sha256").digest())
        self.key = whole.hexdigest()[:32]
        first = self.file(self.file.examples[0].image()) if self.file.examples else {}
        self.reference = first.get("p_value")
        if refuse and not self.file.refuses:
            raise ConfigError(
                f"{path} does not say when to refuse; export a model whose training measured it, or"
                " leave refuse= out"
            )

    def pixel_values(self, image: Array) -> Array:
        """The image itself: preprocessing is in the file."""
        return image

    def compared(self, parts: Sequence[Array]) -> tuple[list[Answer], list[float | None]]:
        """Answer and p-value of each image, uint8 (H, W, C)."""
        found = [self.file(image) for image in parts]
        answers = [
            Answer(out["scores"][0], "refused" in out and bool(out["refused"][0])) for out in found
        ]
        return answers, [float(out["p_value"][0]) if "p_value" in out else None for out in found]

    def answer(
        self, row: Answer, top_k: int | None = None, p_value: float | None = None
    ) -> tuple[list[dict[str, Any]], bool]:
        """Labels and scores of one image, and whether they are refused."""
        order = np.argsort(-row.scores, kind="stable")
        if self.kind == "regression":
            order = np.arange(len(row.scores))
        elif top_k is None and self.kind == "multi_label_classification":
            order = order[: int((row.scores >= self.label_threshold).sum())]
        else:
            order = order[: top_k or SHOWN]
        refused = self.refuses and row.refused
        if refused and not len(order):
            order = np.array([int(row.scores.argmax())])
        more = {} if p_value is None else {"p_value": p_value}
        labels = [{"label": self.labels[i], "score": float(row.scores[i])} | more for i in order]
        if (minimums := self.file.minimums) is not None:
            for i, each in zip(order, labels, strict=True):
                each["in_set"] = float(row.scores[i]) >= minimums[i]
        return labels, refused

    def candidates(self, row: Answer) -> list[str] | None:
        """Classes of the conformal set, best first; None where the file has no minimums."""
        minimums = self.file.minimums
        if minimums is None:
            return None
        order = np.argsort(-row.scores, kind="stable")
        return [self.labels[i] for i in order if float(row.scores[i]) >= minimums[i]]


def _open_onnx(path: Path) -> tuple[Run, dict[str, str]]:
    """What runs an ONNX file, and its metadata."""
    failures = engine("onnxruntime").FAILURES  # type: ignore[attr-defined]  # of this engine
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    try:
        # bytes have no folder, so a graph that names files for its weights is refused
        session = ort.InferenceSession(
            path.read_bytes(), options, providers=["CPUExecutionProvider"]
        )
    except failures as error:
        raise FileFormatError(f"{path}: ONNX Runtime does not take the file: {error}") from error
    names = [each.name for each in session.get_outputs()]

    def run(image: Array) -> dict[str, Array]:
        return dict(zip(names, session.run(None, {"image": image}), strict=True))

    facts = session.get_modelmeta().custom_metadata_map
    return run, {key.removeprefix("headstart."): value for key, value in facts.items()}


def _open_openvino(path: Path) -> tuple[Run, dict[str, str]]:
    """What runs an OpenVINO file, and its metadata."""
    core = engine("openvino").core()  # type: ignore[attr-defined]  # of this engine
    try:
        graph = core.read_model(str(path))
        facts = {
            key: str(graph.get_rt_info(["headstart", key]).value)
            for key in ("full", "labels", "tests", "kind", "threshold", "refuses", "minimums")
            if graph.has_rt_info(["headstart", key])
        }
        program = core.compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    except RuntimeError as error:
        line = str(error).strip().splitlines()[-1]
        raise FileFormatError(f"{path}: OpenVINO does not take the file: {line}") from error

    def run(image: Array) -> dict[str, Array]:
        found = program([image])
        return {port.get_any_name(): np.array(found[port]) for port in program.outputs}

    return run, facts
