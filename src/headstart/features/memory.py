"""What a run with a fitted head remembers of its examples, so that others can be added or removed.

`training.safetensors` holds the content hash and the label of every example, how the head was
fitted, and for heads of a closed form (a linear discriminant, ridge regression) the sums that
decide them. Sums add up over examples: the head after adding and removing is that of a fit to what
remains, without the images. Other heads are fitted again from the features in the cache.

Letters: N examples, D features, V classes, labels or targets.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from headstart.checkpoint import atomic_write
from headstart.checkpoint.documents import as_dataclass, parse_json, value_of
from headstart.checkpoint.reading import read_tensors
from headstart.checkpoint.safetensors_file import read_metadata
from headstart.data.features import FeatureStore
from headstart.data.labels import KINDS, SINGLE
from headstart.errors import ConfigError, FileFormatError
from headstart.features.discriminant import ROWS, Discriminant, Statistics
from headstart.features.portfolio import DISCRIMINANT, WIDEST, Candidate, Trial, View, fit_trial
from headstart.metrics.optional import scipy
from headstart.tasks.base import HeadTask

Doubles = NDArray[np.float64]
Ints = NDArray[np.int64]

FILE = "training.safetensors"
DESCRIPTION = "headstart"  # key of the metadata
EXACT = (DISCRIMINANT, "ridge")  # heads of a closed form


@dataclass(frozen=True)
class Head:
    """One of the heads whose sum is the last layer.

    Args:
        kind: "logistic", "discriminant" or "ridge".
        setting: Its inverse regularization, or shrinkage.
        separate: Whether each feature is standardized by itself, or all together.
        width: Number of features that it reads, the last ones.
        factor: What its scores are multiplied by.
    """

    kind: str
    setting: float
    separate: bool
    width: int
    factor: float = 1.0


@dataclass(frozen=True)
class Sums:
    """Sums over examples that decide a linear discriminant or a ridge regression.

    Args:
        examples: N.
        features: Sum of the features, (D,).
        moments: Sum of x xᵀ, (D, D).
        targets: Sum of the labels y, one-hot for classes, (V,).
        cross: Sum of y xᵀ, (V, D).
    """

    examples: float
    features: Doubles
    moments: Doubles
    targets: Doubles
    cross: Doubles

    @classmethod
    def of(cls, features: NDArray[Any], labels: NDArray[Any], classes: int) -> Self:
        """The sums of examples.

        Args:
            features: (N, D).
            labels: Classes (N,), or labels and regression targets (N, V).
            classes: V.
        """
        N, D = features.shape
        whole = Statistics.of(features, np.zeros(N, dtype=np.int64), 1)
        cross, targets = np.zeros((classes, D)), np.zeros(classes)
        for start in range(0, N, ROWS):
            rows = slice(start, start + ROWS)
            y = one_hot(labels[rows], classes)
            cross += y.T @ np.asarray(features[rows], dtype=np.float64)
            targets += y.sum(axis=0)
        return cls(float(N), whole.sums[0], whole.moments, targets, cross)

    def __add__(self, other: Self) -> Self:
        return type(self)(*(a + b for a, b in zip(self.parts(), other.parts(), strict=True)))

    def __sub__(self, other: Self) -> Self:
        return type(self)(*(a - b for a, b in zip(self.parts(), other.parts(), strict=True)))

    def parts(self) -> tuple[Any, ...]:
        """The five sums."""
        return tuple(getattr(self, field.name) for field in dataclasses.fields(self))

    def with_classes(self, rows: Ints) -> Self:
        """The sums with other classes.

        Args:
            rows: Present number of each class, -1 for one without examples.
        """
        kept = rows >= 0
        targets, cross = np.zeros(len(rows)), np.zeros((len(rows), self.cross.shape[1]))
        targets[kept], cross[kept] = self.targets[rows[kept]], self.cross[rows[kept]]
        return type(self)(self.examples, self.features, self.moments, targets, cross)

    def scaling(self, separate: bool) -> tuple[Doubles, Doubles]:
        """Mean and scale (D,) that standardize the features, one by one or all together."""
        mean = self.features / self.examples
        variances = np.maximum(np.diag(self.moments) / self.examples - np.square(mean), 0.0)
        if not separate:
            scale = float(np.sqrt(variances.mean())) or 1.0
            return mean, np.full(len(mean), scale)
        deviations = np.sqrt(variances)
        # a feature that hardly varies is left small
        return mean, np.maximum(deviations, 1e-2 * (float(deviations.mean()) or 1.0))

    def solve(self, head: Head) -> tuple[Doubles, Doubles]:
        """Weights (V, D) and biases (V,) of a head, in float64.

        Raises:
            ConfigError: A class of a discriminant has no examples, or the head has no closed form.
        """
        mean, scale = self.scaling(head.separate)
        if head.kind == DISCRIMINANT:
            classes = Statistics(self.targets, self.cross, self.moments)
            found = Discriminant.from_statistics(classes.transformed(mean, scale), head.setting)
            weight, bias = found.weight / scale, found.bias
        elif head.kind == "ridge":
            whole = Statistics(
                np.array([self.examples]), self.features[None], self.moments
            ).transformed(mean, scale)
            inner = whole.moments
            inner[np.diag_indices(len(mean))] += 1 / head.setting
            right = (self.cross - np.outer(self.targets, mean)) / scale  # (V, D)
            solver = scipy("linalg")
            weight = np.asarray(solver.cho_solve(solver.cho_factor(inner), right.T)).T / scale
            bias = self.targets / self.examples
        else:
            raise ConfigError(f"a {head.kind} head is not a closed form of sums")
        weight = head.factor * weight
        return weight, head.factor * bias - weight @ mean


def one_hot(labels: NDArray[Any], classes: int) -> Doubles:
    """Labels (N, V) in float64; classes (N,) become zeros and ones."""
    if labels.ndim == 2:
        return np.asarray(labels, dtype=np.float64)
    found = np.zeros((len(labels), classes))
    found[np.arange(len(labels)), labels] = 1
    return found


@dataclass(frozen=True)
class Memory:
    """The examples of a run, and how its head was fitted.

    Args:
        kind: What the labels are, one of `headstart.data.labels.KINDS`.
        classes: Names of classes, labels or targets.
        heads: Heads whose sum is the last layer.
        class_weights: `class_weights` of the recipe.
        digests: Content hashes by split.
        labels: Classes (N,), or labels and targets (N, V), by split.
        sums: Of the training examples; None where the head has no closed form.
    """

    kind: str
    classes: list[str]
    heads: list[Head]
    class_weights: Any
    digests: dict[str, list[str]]
    labels: dict[str, NDArray[Any]]
    sums: Sums | None = None

    @property
    def width(self) -> int:
        """Features that the last layer reads."""
        return max(head.width for head in self.heads)

    @property
    def has_closed_form(self) -> bool:
        """Whether sums decide the head."""
        return (
            len(self.heads) == 1
            and self.heads[0].kind in EXACT
            and self.class_weights in (None, "none")
            and self.width <= WIDEST
        )

    def with_sums(self, features: NDArray[Any]) -> "Memory":
        """The same with the sums of the training examples' features (N, D), where they help."""
        if not self.has_closed_form:
            return self
        sums = Sums.of(features, self.labels["train"], len(self.classes))
        return dataclasses.replace(self, sums=sums)

    def write(self, folder: Path) -> None:
        """Writes `training.safetensors`."""
        from safetensors.numpy import save

        description = {
            "kind": self.kind,
            "classes": self.classes,
            "heads": [dataclasses.asdict(head) for head in self.heads],
            "class_weights": self.class_weights,
        }
        tensors: dict[str, NDArray[Any]] = {}
        for split, digests in self.digests.items():
            texts = np.array([digest.encode() for digest in digests], dtype="S64")
            tensors[f"{split}.digests"] = texts.view(np.uint8).reshape(len(texts), -1)
            tensors[f"{split}.labels"] = np.ascontiguousarray(self.labels[split])
        if self.sums is not None:
            for field in dataclasses.fields(Sums):
                value = np.atleast_1d(np.asarray(getattr(self.sums, field.name)))
                tensors[f"sums.{field.name}"] = np.ascontiguousarray(value)
        metadata = {DESCRIPTION: json.dumps(description)}
        atomic_write(folder / FILE, save(tensors, metadata))

    @classmethod
    def read(cls, folder: Path) -> "Memory":
        """The memory of a result folder.

        Raises:
            ConfigError: The folder keeps none.
            FileFormatError: The file is damaged.
        """
        path = folder / FILE
        if not path.is_file():
            raise ConfigError(
                f"{folder} keeps no statistics of its training examples ({FILE}): only runs whose"
                " head was fitted on frozen features do. Train again: headstart train DATA --model"
                " NAME --tune head --out NEW"
            )
        values = parse_json(read_metadata(path).get(DESCRIPTION, "null"), f"{path}: description")
        kind = value_of(values, "kind", str, path)
        classes = value_of(values, "classes", list[str], path)
        listed = value_of(values, "heads", list[Any], path)
        heads = [as_dataclass(Head, each, path, FileFormatError) for each in listed]
        tensors = read_tensors(path, "numpy")
        digests, labels = {}, {}
        for name in tensors:
            split, _, what = name.partition(".")
            if what == "digests":
                rows = np.ascontiguousarray(tensors[name])
                digests[split] = [bytes(row).rstrip(b"\0").decode("ascii") for row in rows]
                labels[split] = np.array(tensors.get(f"{split}.labels", ()))
        found = cls(kind, classes, heads, values.get("class_weights"), digests, labels)
        found.check(path)
        if "sums.examples" not in tensors:
            return found
        names = [field.name for field in dataclasses.fields(Sums)]
        parts = [np.array(tensors.get(f"sums.{name}", ()), dtype=np.float64) for name in names]
        D, V = found.width, len(classes)
        if [part.shape for part in parts] != [(1,), (D,), (D, D), (V,), (V, D)]:
            raise FileFormatError(
                f"{path} is damaged: the shapes of its sums do not fit; train again"
            )
        return dataclasses.replace(found, sums=Sums(float(parts[0][0]), *parts[1:]))

    def check(self, path: Path) -> None:
        """Refuses a file whose parts do not fit together.

        Raises:
            FileFormatError: Some part is missing or of another size.
        """
        good = self.kind in KINDS and bool(self.heads) and "train" in self.digests
        for split, digests in self.digests.items():
            labels, V = self.labels[split], len(self.classes)
            if self.kind == SINGLE:
                fits = labels.shape == (len(digests),) and labels.dtype.kind == "i"
                good = good and fits and bool(((labels >= 0) & (labels < V)).all())
            else:
                good = good and labels.shape == (len(digests), V)
        if not good:
            raise FileFormatError(f"{path} is damaged: its parts do not fit together; train again")

    def reclassed(self, classes: Sequence[str]) -> "Memory":
        """The same memory with other classes; examples of classes that are left out are removed.

        Args:
            classes: Names of all classes.
        """
        numbers = {name: i for i, name in enumerate(self.classes)}
        rows = np.array([numbers.get(name, -1) for name in classes], dtype=np.int64)
        digests, labels = dict(self.digests), dict(self.labels)
        if self.kind == SINGLE:
            new = np.full(len(self.classes), -1, dtype=np.int64)
            new[rows[rows >= 0]] = np.flatnonzero(rows >= 0)
            for split in digests:
                moved = new[self.labels[split]]
                kept = moved >= 0
                labels[split] = moved[kept]
                digests[split] = [d for d, keep in zip(digests[split], kept, strict=True) if keep]
        else:
            for split, old in self.labels.items():
                labels[split] = np.zeros((len(old), len(rows)), dtype=old.dtype)
                labels[split][:, rows >= 0] = old[:, rows[rows >= 0]]
        sums = None if self.sums is None else self.sums.with_classes(rows)
        return dataclasses.replace(
            self, classes=list(classes), digests=digests, labels=labels, sums=sums
        )

    def added(
        self,
        digests: Mapping[str, Sequence[str]],
        labels: Mapping[str, NDArray[Any]],
        features: NDArray[Any],
    ) -> "Memory":
        """The memory with further examples.

        Args:
            digests: Content hashes by split.
            labels: Their labels by split.
            features: Of the training examples among them, (N, D).
        """
        every = {split: [*self.digests.get(split, []), *new] for split, new in digests.items()}
        both = {
            split: np.concatenate([self.labels[split], new]) if split in self.labels else new
            for split, new in labels.items()
        }
        sums = self.sums
        if sums is not None:
            sums = sums + Sums.of(features, labels["train"], len(self.classes))
        return dataclasses.replace(
            self, digests=self.digests | every, labels=self.labels | both, sums=sums
        )

    def removed(self, rows: Mapping[str, NDArray[np.bool_]], features: NDArray[Any]) -> "Memory":
        """The memory without some examples.

        Args:
            rows: Whether each example is removed, (N,), by split.
            features: Of the training examples that are removed, (N, D).
        """
        digests = {
            split: [d for d, out in zip(self.digests[split], gone, strict=True) if not out]
            for split, gone in rows.items()
        }
        labels = {split: self.labels[split][~gone] for split, gone in rows.items()}
        sums = self.sums
        if sums is not None:
            gone = self.labels["train"][rows["train"]]
            sums = sums - Sums.of(features, gone, len(self.classes))
        return dataclasses.replace(self, digests=digests, labels=labels, sums=sums)


def memory_of(
    task: HeadTask, choice: Trial, usual: int, class_weights: Any, store: FeatureStore
) -> Memory:
    """What a run remembers.

    Args:
        task: Its examples.
        choice: The head that was chosen.
        usual: Features of the last stage.
        class_weights: `class_weights` of the recipe.
        store: Features of the network with the head.
    """
    digests = task.feature_digests()
    whole = store[digests["train"][:1]].shape[1]
    heads = [
        Head(
            candidate.head,
            setting,
            candidate.stages != "last",
            usual if candidate.stages == "last" else whole,
            factor,
        )
        for candidate, setting, factor in zip(
            choice.candidates, choice.settings, choice.scales, strict=True
        )
    ]
    labels = {split: np.asarray(task.targets(split)) for split in digests}
    kind, classes = task.problem.kind, list(task.classes)
    memory = Memory(kind, classes, heads, class_weights, digests, labels)
    return memory.with_sums(store[digests["train"]]) if memory.has_closed_form else memory


def refit(
    memory: Memory, features: NDArray[Any], weights: Doubles | None
) -> tuple[Doubles, Doubles]:
    """Weights (V, D) and biases (V,) of heads without closed form, fitted to all examples.

    Args:
        memory: Labels, and how the heads were fitted.
        features: Of its training examples, (N, D).
        weights: Weight of each label, (N,) or (N, V); None weighs all the same.
    """
    stages = {False: "last", True: "all"}
    candidates = tuple(Candidate(View(), stages[head.separate], head.kind) for head in memory.heads)
    widths = {stages[head.separate]: head.width for head in memory.heads}
    trial = Trial(
        candidates,
        tuple(head.setting for head in memory.heads),
        tuple(head.factor for head in memory.heads),
        np.zeros(0),
        (),
    )
    fit = fit_trial(
        trial,
        lambda candidate: features[:, -widths[candidate.stages] :],
        memory.labels["train"],
        len(memory.classes),
        weights,
    )
    return fit.weight.astype(np.float64), fit.bias.astype(np.float64)
