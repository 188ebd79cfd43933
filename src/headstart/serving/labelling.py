"""Labels for the images of a folder, given by a person, while a head learns from each.

The features of the images are computed once; after every label the head (linear discriminant
analysis) is the closed form of the examples so far. Every fourth image is a random one: how many of
those are right by heads that did not see them is the accuracy that new images may expect.

Letters: N images, D features, V classes.
"""

import csv
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headstart.data.cache import inspect_all
from headstart.data.features import FeatureStore
from headstart.data.inputs import ImageInput, image_inputs
from headstart.errors import ConfigError, DataError, InputError
from headstart.features.discriminant import Discriminant, Statistics
from headstart.features.embed import Embedder, image_vectors
from headstart.features.extract import WRITTEN_TOGETHER
from headstart.features.search import unit
from headstart.metrics.classification import softmax
from headstart.progress import Progress

Floats = NDArray[np.float32]
HEAD = ("image", "label")
ALIKE = 0.98  # cosine similarity from which on images are near-identical
WIDTH = 128  # directions that the head sees
RANDOM = 4  # every which image is a random one
FOLDS = 5  # of the random images
Z = 1.96  # standard deviations of a 95 % interval


def principal(features: Floats) -> Floats:
    """The standardized features in the directions of most variance, at most `WIDTH` of them.

    Distances within them stay, and a head is fitted in a few milliseconds.
    """
    spread = features.std(axis=0)
    x: Floats = (features - features.mean(axis=0)) / np.where(spread > 0, spread, np.float32(1))
    if x.shape[1] <= WIDTH:
        return x
    _, directions = np.linalg.eigh((x.T @ x).astype(np.float64))  # ascending
    found: Floats = x @ directions[:, -WIDTH:].astype(np.float32)
    return found


class LabelTable:
    """A CSV table of images and labels, whole on disk after every change.

    Args:
        path: The table; images are named relative to its folder.

    Raises:
        DataError: A table that is there and is not one of images and labels.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[tuple[str, str]] = []
        self.ends: list[int] = []  # size of the table after each change
        path.parent.mkdir(parents=True, exist_ok=True)
        data = path.read_bytes() if path.exists() else b""
        whole = data[: data.rfind(b"\n") + 1]  # the rest of a row that was cut off is removed
        if len(whole) < len(data):
            self._change(len(whole), b"")
        if not whole:
            self._append([HEAD])
            return
        lines = list(csv.reader(io.StringIO(whole.decode(errors="surrogateescape"))))
        if tuple(lines[0]) != HEAD or any(len(line) != len(HEAD) for line in lines):
            raise DataError(f"{path}: expected a table of image and label; choose another --out")
        self.rows = [(image, label) for image, label in lines[1:]]

    def _append(self, rows: Sequence[tuple[str, str]]) -> int:
        """Appends rows in one write; returns the size of the table before."""
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(rows)
        size = self.path.stat().st_size if self.path.exists() else 0
        self._change(size, text.getvalue().encode(errors="surrogateescape"))
        return size

    def _change(self, size: int, data: bytes) -> None:
        """Ends the table after `size` bytes and appends data; on disk when this returns."""
        with self.path.open("r+b" if self.path.exists() else "wb", buffering=0) as file:
            file.truncate(size)
            file.seek(size)
            file.write(data)
            os.fsync(file.fileno())

    def add(self, rows: Sequence[tuple[str, str]]) -> None:
        """Appends rows."""
        self.ends.append(self._append(rows))
        self.rows += rows

    def undo(self) -> list[tuple[str, str]]:
        """Removes what the last `add` of this process appended, and returns it."""
        if not self.ends:
            return []
        end = self.ends.pop()
        text = self.path.read_bytes()[end:].decode(errors="surrogateescape")
        removed = list(csv.reader(io.StringIO(text)))
        self._change(end, b"")
        del self.rows[len(self.rows) - len(removed) :]
        return [(image, label) for image, label in removed]


def features_of(
    inputs: Sequence[ImageInput], embedder: Embedder, progress: Progress, batch_size: int = 16
) -> tuple[list[ImageInput], Floats, list[str]]:
    """The images that can be read, their features (N, D), and why the others cannot.

    Features that are cached from before are found again by the content of the image.
    """
    store = FeatureStore(f"{embedder.key}-embed")
    found = inspect_all([each.source for each in inputs], None)
    lost = [f"{inputs[i].name}: {each}" for i, each in enumerate(found) if isinstance(each, str)]
    digest = {i: each[0] for i, each in enumerate(found) if not isinstance(each, str)}
    missing = list({name: i for i, name in digest.items() if name not in store}.values())
    progress.start("features", len(missing))
    names: list[str] = []
    rows: list[Floats] = []
    vectors = image_vectors(embedder, [inputs[i] for i in missing], batch_size)
    for done, (i, each) in enumerate(zip(missing, vectors, strict=True), start=1):
        if each.vector is None:
            lost.append(each.error)
        else:
            names.append(digest[i])
            rows.append(each.vector)
        if names and (len(names) == WRITTEN_TOGETHER or done == len(missing)):
            store.add(names, np.stack(rows))
            names, rows = [], []
        progress.update(done, {})
    if names:
        store.add(names, np.stack(rows))
    readable = [i for i, name in digest.items() if name in store]
    if not readable:
        raise DataError(f"none of the {len(inputs)} images can be read: {lost[0]}")
    return [inputs[i] for i in readable], store[[digest[i] for i in readable]], lost


@dataclass(frozen=True)
class Suggestion:
    """A class and the probability that the head gives it."""

    label: str
    probability: float


def head_of(statistics: Statistics) -> tuple[Discriminant | None, NDArray[np.int64]]:
    """The head of the classes that have examples, and their numbers; None below two."""
    seen = np.flatnonzero(statistics.counts > 0.5)  # counts are sums of ones
    if len(seen) < 2:
        return None, seen
    some = Statistics(statistics.counts[seen], statistics.sums[seen], statistics.moments)
    return Discriminant.from_statistics(some), seen


class Labelling:
    """The state of labelling: which images have a label, which comes next, what is expected.

    Args:
        inputs: The images.
        features: (N, D).
        table: Where labels go; those in it are taken up again.
        classes: Names of classes that are known beforehand.
        seed: Of the random images.

    Raises:
        DataError: The table names images that are not among `inputs`.
    """

    def __init__(
        self,
        inputs: Sequence[ImageInput],
        features: Floats,
        table: LabelTable,
        classes: Sequence[str] = (),
        seed: int = 0,
    ) -> None:
        self.inputs, self.table = list(inputs), table
        self.unit = unit(features)
        self.x = principal(features)
        self.rng = np.random.default_rng(seed)
        self.classes = list(dict.fromkeys(classes))
        folder = table.path.parent.resolve()
        self.names = [os.path.relpath(Path(each.name).resolve(), folder) for each in inputs]
        index = {name: i for i, name in enumerate(self.names)}
        unknown = [image for image, _ in table.rows if image not in index]
        if unknown:
            raise DataError(
                f"{table.path} has {len(unknown)} images that are not in the folder, such as"
                f" {unknown[0]}; choose another --out"
            )
        self.labels: dict[int, str] = {}
        self.skipped: set[int] = set()
        self.tests: list[int] = []  # random images
        self.right = 0  # how many of them are right by heads that did not see them
        width = self.x.shape[1]
        none = np.zeros(0, dtype=np.int64)
        self.statistics = Statistics.of(np.empty((0, width)), none, 0)
        for label in self.classes:
            self._grow(label)
        by_label = [(index[image], label) for image, label in table.rows]
        self._learn(by_label)
        self.head: Discriminant | None = None
        self._fit()
        self.current, self.is_test = -1, False
        self._choose()

    def _grow(self, label: str) -> None:
        """Adds a class without examples."""
        if label not in self.classes:
            self.classes.append(label)
        old, more = self.statistics, len(self.classes) - len(self.statistics.counts)
        counts = np.pad(old.counts, (0, more))
        self.statistics = Statistics(counts, np.pad(old.sums, ((0, more), (0, 0))), old.moments)

    def _part(self, rows: Sequence[tuple[int, str]]) -> Statistics:
        x = self.x[[i for i, _ in rows]]
        labels = np.array([self.classes.index(label) for _, label in rows], dtype=np.int64)
        return Statistics.of(x, labels, len(self.classes))

    def _learn(self, rows: Sequence[tuple[int, str]]) -> None:
        """Adds examples to what the head is a closed form of; one that has a label loses it."""
        self._forget([(i, self.labels[i]) for i, _ in rows if i in self.labels])
        for _, label in rows:
            self._grow(label)
        last = dict(rows)
        if last:
            self.statistics += self._part(list(last.items()))
        self.labels |= last

    def _forget(self, rows: Sequence[tuple[int, str]]) -> None:
        if rows:
            self.statistics -= self._part(rows)
        for i, _ in rows:
            del self.labels[i]

    def _fit(self) -> None:
        """The head of the examples so far; None below two classes."""
        self.head, self.seen = head_of(self.statistics)

    def _scores(self, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """Probabilities (rows, classes seen)."""
        assert self.head is not None
        return softmax(self.x[rows] @ self.head.weight.T + self.head.bias)

    def _choose(self) -> None:
        """Takes the next image: a random one, else the one that the head doubts most; before there
        is a head, the one that is farthest from all that have a label.
        """
        free = np.array(
            [i for i in range(len(self.inputs)) if i not in self.labels and i not in self.skipped],
            dtype=np.int64,
        )
        if not len(free):
            self.current, self.is_test = -1, False
            return
        self.is_test = self.head is not None and len(self.labels) % RANDOM == 0
        if self.is_test:
            self.current = int(self.rng.choice(free))
        elif self.head is not None:
            best = np.sort(self._scores(free), axis=1)
            self.current = int(free[np.argmin(best[:, -1] - best[:, -2])])
        elif self.labels:
            near = self.unit[free] @ self.unit[list(self.labels)].T
            self.current = int(free[np.argmin(near.max(axis=1))])
        else:
            center = self.unit[free] @ self.unit[free].mean(axis=0)
            self.current = int(free[np.argmax(center)])

    def suggestions(self, most: int = 3) -> list[Suggestion]:
        """Classes that the head finds probable for the current image, best first."""
        if self.head is None or self.current < 0:
            return []
        row = self._scores(np.array([self.current]))[0]
        names = [self.classes[self.seen[i]] for i in np.argsort(-row)[:most]]
        return [Suggestion(n, float(p)) for n, p in zip(names, sorted(row)[::-1], strict=False)]

    def alike(self) -> list[int]:
        """Images without a label that are near-identical to the current one."""
        if self.current < 0:
            return []
        near = np.flatnonzero(self.unit @ self.unit[self.current] >= ALIKE)
        return [i for i in near.tolist() if i != self.current and i not in self.labels]

    def label(self, image: int, label: str, all_alike: bool = False) -> None:
        """Gives the current image a class, which may be new; the head learns from it.

        Args:
            image: Its number, which must be the current one.
            label: The class.
            all_alike: Also label those that are near-identical.

        Raises:
            InputError: Another image than the current one, or an empty class.
        """
        if image != self.current or image < 0:
            raise InputError(f"image {image} is not the one that is shown; reload the page")
        name = " ".join(label.split())
        if not name or len(name) > 100:
            raise InputError("a class has a name of 1 to 100 characters")
        if self.is_test:
            self.tests.append(image)
        rows = [(i, name) for i in [image, *(self.alike() if all_alike else [])]]
        self.table.add([(self.names[i], name) for i, _ in rows])
        self._learn(rows)
        if self.tests[-1:] == [image]:
            self.right = self._cross_validated()
        self._fit()
        self._choose()

    def skip(self, image: int) -> None:
        """Leaves out the current image, until the next start."""
        if image == self.current >= 0:
            self.skipped.add(image)
            self._choose()

    def undo(self) -> None:
        """Takes the last labels back, and shows their image again."""
        removed = self.table.undo()
        if not removed:
            raise InputError("there is nothing to take back; earlier labels are in the table")
        index = {name: i for i, name in enumerate(self.names)}
        rows = [(index[image], label) for image, label in removed]
        self._forget(rows)
        if self.tests[-1:] == [rows[0][0]]:
            self.tests.pop()
            self.right = self._cross_validated()
        self._fit()
        self.current, self.is_test = rows[0][0], False

    def _cross_validated(self) -> int:
        """How many of the random images are right by heads of all labels but a fifth of them."""
        right = 0
        for fold in range(min(FOLDS, len(self.tests))):
            rows = [(i, self.labels[i]) for i in self.tests[fold::FOLDS]]
            head, seen = head_of(self.statistics - self._part(rows))
            if head is None:
                continue
            scores = self.x[[i for i, _ in rows]] @ head.weight.T + head.bias
            found = [self.classes[seen[best]] for best in scores.argmax(axis=1)]
            right += sum(a == b for a, (_, b) in zip(found, rows, strict=True))
        return right

    def expected(self) -> dict[str, Any] | None:
        """Accuracy on new images with its 95 % interval (Wilson), or None before there are five
        random images.
        """
        n = len(self.tests)
        if n < FOLDS:
            return None
        p = self.right / n
        middle = (p + Z**2 / (2 * n)) / (1 + Z**2 / n)
        half = Z / (1 + Z**2 / n) * (p * (1 - p) / n + Z**2 / (4 * n**2)) ** 0.5
        interval = [max(0.0, middle - half), min(1.0, middle + half)]
        return {"accuracy": p, "interval": interval, "examples": n}

    def state(self) -> dict[str, Any]:
        """What the page shows, as JSON."""
        counts = dict.fromkeys(self.classes, 0)
        for label in self.labels.values():
            counts[label] += 1
        shown = self.current >= 0
        return {
            "image": self.current if shown else None,
            "name": self.inputs[self.current].name if shown else None,
            "suggestions": [vars(each) for each in self.suggestions()],
            "alike": len(self.alike()),
            "classes": [{"label": label, "count": count} for label, count in counts.items()],
            "done": len(self.labels),
            "total": len(self.inputs),
            "expected": self.expected(),
            "can_undo": bool(self.table.ends),
            "table": str(self.table.path),
        }


def open_labelling(
    folder: Path,
    out: Path,
    model: str,
    classes: Sequence[str],
    progress: Progress,
    device: Any = None,
) -> Labelling:
    """The labelling of the images of a folder, taken up again where the table is there.

    Args:
        folder: Images anywhere below it.
        out: The table.
        model: Network whose features the head learns on.
        classes: Classes that are known beforehand.
        progress: Shows the features that are done, and images that cannot be read.
        device: Where to compute.

    Raises:
        ConfigError: The model is not one of images.
        DataError: No image can be read, or the table is another one.
    """
    embedder = Embedder(model, device)
    if embedder.reads_text:
        raise ConfigError(f"{model} reads texts; labelling is of images")
    inputs, features, lost = features_of(image_inputs([folder]), embedder, progress)
    for line in lost:
        progress.report(f"headstart: {line}")
    return Labelling(inputs, features, LabelTable(out), classes)
