"""What is the choice of a head worth? `--tune head` beside the plain head and scikit-learn's.

    python benchmarks/portfolio.py DATA/images [--draws 5] [--shots 5 10 50] [--sets eurosat …]
        [--also scenes=FOLDER imagenette=FOLDER]

Every contender gets the same frozen `bit-mini` and the same random subsets of the training images,
and is evaluated on the same held-out images. `plain` is logistic regression on the last stage with
cross-validated regularization, at the usual size; `scikit-learn` its `LogisticRegression` with
default values on the same features, standardized; `nearest mean` gives the class of the nearest
mean. `svm` is the head of AutoGluon's few-shot predictor (scikit-learn's `SVC(gamma="auto")` on
standardized features; AutoGluon itself brings its own torch), `vyntri` that of vyntri 1.5 with its
default values, from its own classes (pip install --no-deps vyntri; left out where it is missing).
Intervals are of the mean difference to `plain`, by a bootstrap over draws and, within a draw,
over held-out images in pairs. Nothing is chosen by held-out images. `--also NAME=FOLDER` adds data
of class folders below train and val, at most 60 images of each class. CIFAR-100 is of rows that
bit-mini 1 was not pretrained on. `--until HH:MM` stops in time; the number of draws that were
reached is in every row. The results hold which images each contender has right, and are written
after every draw: a later call goes on from there, if the network is the same; with `--again` it
selects the heads of known trials anew and keeps the other contenders ("selected" in the results is
the day of that).
"""

import argparse
import contextlib
import hashlib
import importlib.util
import itertools
import json
import sys
import tempfile
import time
import types
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bit_mini import Rows, read_folder, read_npz, read_tar
from numpy.typing import NDArray
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from timing import RESULTS, machine

from headstart import AutoModelForImageClassification
from headstart.data.options import DataOptions
from headstart.features.choice import Views, read_states, search, states_of
from headstart.features.extract import extractor_of
from headstart.features.head import fit_head
from headstart.features.portfolio import Comparison, View, fit_trial
from headstart.recipe import Recipe
from headstart.tasks.image_classification import ImageClassification

Booleans = NDArray[np.bool_]
RESAMPLES = 2000
MOST = 60  # images of each class of a further folder


def data_sets(images: Path, also: Sequence[str] = ()) -> dict[str, tuple[Rows, Rows]]:
    """Training and evaluation rows of every data set."""
    cifar, ants, lungs = images / "cifar10", images / "hymenoptera", images / "pneumoniamnist"
    found = {
        "flowers": tuple(read_tar(images / f"flowers102/{s}.tar") for s in ("train", "val")),
        "eurosat": tuple(read_tar(images / f"eurosat/{s}.tar") for s in ("train", "val")),
        "ants-bees": (read_folder(ants / "train"), read_folder(ants / "val")),
        "pneumonia": (read_npz(lungs / "train.npz"), read_npz(lungs / "val.npz")),
        "cifar10": (read_npz(cifar / "train_100shot.npz"), read_npz(cifar / "val.npz")),
        "cifar100-coarse": tuple(
            read_npz(images / f"cifar100/{s}.npz", "coarse_labels") for s in ("train_10shot", "val")
        ),
    }
    for each in also:
        name, folder = each.split("=", 1)
        found[name] = tuple(read_folder(Path(folder) / split, MOST) for split in ("train", "val"))
    return found


def vyntri_scores(x: NDArray[Any], labels: NDArray[Any], test: NDArray[Any]) -> NDArray[Any] | None:
    """Classes by vyntri's head with its default values; None where it is not installed."""
    if importlib.util.find_spec("vyntri") is None:
        return None
    for name in ("torchvision", "torchvision.models", "torchvision.transforms"):
        sys.modules.setdefault(name, types.ModuleType(name))  # only its backbones need it
    from vyntri.adaptation import AnalyticRidge, make_projection

    width = max(1, min(128, x.shape[1], len(np.unique(labels)) - 1))
    projection = make_projection("fk", width, 1e-4, None, "diagonal", 0.5).fit(x, labels)
    head = AnalyticRidge(1e-4).fit(projection.transform(x), labels)
    return np.asarray(head.predict(projection.transform(test)))


def write(rows: Rows, folder: Path) -> None:
    """Images as class folders."""
    for i, (pixels, label) in enumerate(zip(*rows, strict=True)):
        path = folder / f"{int(label):03}" / f"{i:05}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.asarray(pixels)).convert("RGB").save(path)


def opened(train: Rows, test: Rows, folder: Path, model: str) -> tuple[Views, list[int]]:
    """A task with these images, its features in every view, and the sides to try."""
    write(train, folder / "train")
    write(test, folder / "val")
    task = ImageClassification.read(folder, DataOptions())
    network = task.build(model, Recipe(tune="head")).eval()
    usual = task.head(network).in_features
    read_states(network, task.head(network), states_of(network))
    return Views(task, extractor_of(task, network, torch.device("cpu")), usual), task.sides()


def contend(
    views: Views, sides: list[int], rows: NDArray[Any], draw: int, search_too: bool = True
) -> dict[str, Any]:
    """Which held-out images each contender has right, and what was chosen."""
    task = views.task
    digests, every = task.feature_digests(), task.targets("train")
    labels, truth, V = every[rows], task.targets("validation"), len(task.classes)
    names = [digests["train"][row] for row in rows]
    plain_view = View(sides[0])
    x = views.features(plain_view, names)[:, -views.usual :]
    test = views.features(plain_view, digests["validation"])[:, -views.usual :]
    right: dict[str, Booleans] = {}
    seconds: dict[str, float] = {}

    began = time.process_time()
    fit = fit_head(x, labels, V, draw)
    seconds["plain"] = time.process_time() - began
    right["plain"] = (test @ fit.weight.T + fit.bias).argmax(1) == truth

    began = time.process_time()
    theirs = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)).fit(x, labels)
    seconds["scikit-learn"] = time.process_time() - began
    right["scikit-learn"] = theirs.predict(test) == truth

    began = time.process_time()
    theirs = make_pipeline(StandardScaler(), SVC(gamma="auto")).fit(x, labels)
    seconds["svm"] = time.process_time() - began
    right["svm"] = theirs.predict(test) == truth

    began = time.process_time()
    classes = vyntri_scores(x, labels, test)
    if classes is not None:
        seconds["vyntri"] = time.process_time() - began
        right["vyntri"] = classes == truth

    means = np.stack([x[labels == c].mean(0) for c in range(V)])
    distances = np.square(test).sum(1)[:, None] - 2 * test @ means.T + np.square(means).sum(1)
    right["nearest mean"] = distances.argmin(1) == truth
    found = result_of(right, seconds)
    return found | selected(views, sides, rows, draw, found) if search_too else found


def selected(
    views: Views, sides: list[int], rows: NDArray[Any], draw: int, known: dict[str, Any]
) -> dict[str, Any]:
    """As `contend`, of the selected head alone; the other contenders are those of a known trial."""
    task = views.task
    digests, labels = task.feature_digests(), task.targets("train")[rows]
    truth, V = task.targets("validation"), len(task.classes)
    names = [digests["train"][row] for row in rows]
    began = time.process_time()
    comparison = Comparison(
        labels,
        V,
        groups=lambda some: task.groups(rows[some]),
        seed=draw,
        widest=views.extractor.layer.in_features,
    )
    compared = [names[row] for row in comparison.rows]
    choice, _ = search(views, comparison, compared, sides, lambda view: True)
    view = choice.candidates[0].view
    found = views.features(view, names)
    fitted = fit_trial(choice, lambda each: views.of(each, found), labels, V, None)
    seconds = time.process_time() - began
    held = views.features(view, digests["validation"])[:, -fitted.weight.shape[1] :]
    right = (held @ fitted.weight.T + fitted.bias).argmax(1) == truth
    mine = result_of({"portfolio": right}, {"portfolio": seconds})
    merged = {key: known[key] | mine[key] for key in ("right", "seconds")}
    return known | merged | {"chosen": choice.name, "selected": date.today().isoformat()}


def result_of(right: dict[str, Booleans], seconds: dict[str, float]) -> dict[str, Any]:
    """What the file holds of one trial."""
    return {
        "count": len(next(iter(right.values()))),
        "right": {who: packed(each) for who, each in right.items()},
        "seconds": {who: round(each, 3) for who, each in seconds.items()},
    }


def interval(differences: list[NDArray[Any]], seed: int = 0) -> list[float]:
    """95 % interval in points of the mean difference, by a bootstrap of draws and images."""
    rng = np.random.default_rng(seed)
    means = []
    for _ in range(RESAMPLES):
        chosen = rng.integers(len(differences), size=len(differences))
        each = [differences[i] for i in chosen]
        means.append(np.mean([d[rng.integers(len(d), size=len(d))].mean() for d in each]))
    return [round(100 * float(q), 2) for q in np.quantile(means, (0.025, 0.975))]


def subset(labels: NDArray[Any], shots: int, draw: int) -> NDArray[Any]:
    """So many random rows of each class."""
    rng = np.random.default_rng(draw)
    classes = range(labels.max() + 1)
    each = [rng.permutation(np.flatnonzero(labels == c))[:shots] for c in classes]
    return np.concatenate(each)


def packed(right: Booleans) -> str:
    """Zeros and ones, eight a byte, as hexadecimal digits."""
    return np.packbits(right).tobytes().hex()


def unpacked(text: str, count: int) -> Booleans:
    """The inverse of `packed`."""
    return np.unpackbits(np.frombuffer(bytes.fromhex(text), np.uint8))[:count].astype(bool)


def weights_of(model: str) -> str:
    """First digits of the SHA-256 of the weights."""
    found = hashlib.sha256()
    for _, tensor in sorted(
        AutoModelForImageClassification.from_pretrained(model).state_dict().items()
    ):
        found.update(tensor.contiguous().numpy().tobytes())
    return found.hexdigest()[:16]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("images", type=Path)
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--shots", nargs="*", type=int, default=[5, 10, 50])
    parser.add_argument("--sets", nargs="*")
    parser.add_argument("--model", default="bit-mini")
    parser.add_argument("--first-draw", type=int, default=0)
    parser.add_argument("--loaded", action="store_true", help="say that the machine was busy")
    parser.add_argument("--no-search", action="store_true", help="the cheap contenders alone")
    parser.add_argument("--again", action="store_true", help="select the head of known trials anew")
    parser.add_argument("--also", nargs="*", default=[])
    parser.add_argument("--until", help="HH:MM after which nothing new is begun")
    parser.add_argument("--out", type=Path, default=RESULTS / "portfolio.json")
    args = parser.parse_args()
    facts = {
        "model": args.model,
        "weights": weights_of(args.model),
        "loaded": args.loaded,
        "machine": machine(),
    }
    trials = known_trials(args.out, facts["weights"])
    sets = data_sets(args.images, args.also)
    with contextlib.ExitStack() as stack:
        ready = {}
        for name in args.sets or sets:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            ready[name] = opened(*sets[name], Path(folder), args.model)
        draws = range(args.first_draw, args.first_draw + args.draws)
        for draw, name, shots in itertools.product(draws, ready, args.shots):
            views, sides = ready[name]
            labels = views.task.targets("train")
            if shots > np.bincount(labels).min() or is_late(args.until):
                continue
            key = {"data": name, "shots": shots, "draw": draw}
            known = [at for at, each in enumerate(trials) if each | key == each]
            if known and not args.again:
                continue
            rows = subset(labels, shots, draw)
            if known:
                trials[known[0]] = selected(views, sides, rows, draw, trials[known[0]])
            else:
                trials.append(key | contend(views, sides, rows, draw, not args.no_search))
            write_results(args.out, facts, trials, row_of)
            print(name, shots, draw, trials[(known or [-1])[0]]["seconds"], flush=True)


def known_trials(path: Path, weights: str) -> list[dict[str, Any]]:
    """The trials of an earlier call with the same network."""
    if not path.exists():
        return []
    found = json.loads(path.read_text())
    return list(found["trials"]) if found.get("weights") == weights else []


def write_results(
    path: Path,
    facts: dict[str, Any],
    trials: list[dict[str, Any]],
    row_of: Callable[[str, int, list[dict[str, Any]]], dict[str, Any]],
) -> None:
    """A table of means, and the trials that it is of, one a line."""
    of_cell: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for each in trials:
        of_cell.setdefault((each["data"], each["shots"]), []).append(each)
    rows = [row_of(*key, found) for key, found in sorted(of_cell.items())]
    text = json.dumps(facts | {"rows": rows}, indent=1)[:-2]
    lines = ",\n  ".join(map(json.dumps, trials))
    path.write_text(f'{text},\n "trials": [\n  {lines}\n ]\n}}\n')


def is_late(until: str | None) -> bool:
    """Whether it is later than a time of the day, "HH:MM"."""
    return until is not None and time.strftime("%H:%M", time.gmtime()) >= until


def row_of(name: str, shots: int, found: list[dict[str, Any]]) -> dict[str, Any]:
    """Accuracy, gain and seconds of every contender, over the draws."""
    row: dict[str, Any] = {"data": name, "shots": shots, "draws": len(found)}
    for who in found[0]["right"]:
        right, plain = (
            [unpacked(each["right"][key], each["count"]) for each in found]
            for key in (who, "plain")
        )
        row[who] = round(100 * float(np.mean([r.mean() for r in right])), 1)
        gains = [r.astype(float) - p for r, p in zip(right, plain, strict=True)]
        mean = float(np.mean([g.mean() for g in gains]))
        row[f"{who}: gain"] = [round(100 * mean, 1), *interval(gains)]
    for who in found[0]["seconds"]:
        times = [each["seconds"][who] for each in found]
        row[f"{who}: CPU seconds"] = round(float(np.mean(times)), 2)
    return row


if __name__ == "__main__":
    main()
