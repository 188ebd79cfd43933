"""Examples added to, or removed from, a run whose head was fitted on frozen features.

`headstart.update` and `headstart update` are both `update` here, `headstart.forget` and
`headstart forget` both `forget`. A new folder is completed beside the old one, which it then
replaces.
"""

import dataclasses
import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from headstart.checkpoint import atomic_write
from headstart.data.examples import Examples
from headstart.data.images import ImageData, combined_fingerprint
from headstart.data.inputs import image_inputs
from headstart.data.labels import REGRESSION, SINGLE
from headstart.data.options import DataOptions
from headstart.errors import ConfigError, DataError, counted, listed
from headstart.features.enough import FEWEST, FEWEST_OF_CLASS, forecast_of
from headstart.features.extract import Extractor, extractor_of
from headstart.features.memory import Memory, refit
from headstart.features.unknown import fit_reference
from headstart.metrics.learning_curve import Forecast
from headstart.pipelines.base import read_results
from headstart.pipelines.confidence import FILE as CONFIDENCE
from headstart.pipelines.unknown import FILE as UNKNOWN
from headstart.progress import Progress, progress_for_python
from headstart.recipe import Recipe
from headstart.registry import FOLDER_LOADERS
from headstart.report.write import write_card
from headstart.tasks.base import Evaluation
from headstart.tasks.image_classification import ImageClassification
from headstart.tasks.problems import problem_of
from headstart.tasks.result import Result
from headstart.training.lock import LOCK, locked
from headstart.training.predictions import PREDICTIONS, figures
from headstart.training.request import RESULTS, Request
from headstart.training.result import summary, write_confidence
from headstart.training.seen import FILE as SEEN
from headstart.training.seen import changed_looks, write_digests

TASK = "image-classification"
# written anew, or about the model before: an update leaves them out
REPLACED = (
    "*.safetensors", "*.safetensors.index.json", "report.html", "README.md", PREDICTIONS,
    CONFIDENCE, "metrics.jsonl", "tensorboard", RESULTS, SEEN, LOCK, ".*.tmp",
)  # fmt: skip


def update(
    run: str | Path,
    data: str | Path,
    *,
    columns: Mapping[str, str] | None = None,
    skip_bad: bool = False,
    device: str | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Result:
    """Adds labeled images, and their classes, to a run whose head was fitted on frozen features.

    The model is that of a fit to all images together, with the settings that the run chose. A
    linear discriminant and a ridge regression need none of the earlier images, another head needs
    their features in the cache. The result folder is replaced when the new one is complete.

    Args:
        run: The result folder.
        data: New images with labels, as `headstart.train` reads them. Validation and test images
            join those that the run evaluates on.
        columns: Columns of a table by role.
        skip_bad: Leave out unreadable images.
        device: Where to compute features; None takes the best there is.
        workers: Threads that read and decode.
        progress: Where progress is shown; None shows it in notebooks and is silent elsewhere.

    Returns:
        The result, evaluated on the images that were held out where their features are cached.

    Raises:
        ConfigError: The run keeps no statistics of its images, or its features are missing.
        DataError: The new data cannot be read, or its labels are not those of the run.

    Example:
        >>> import headstart
        >>> result = headstart.update("runs/photos", "new-photos/")  # doctest: +SKIP
        >>> result.metrics["accuracy"]  # doctest: +SKIP
        0.94
    """
    folder, progress, began = (
        existing_run(run),
        progress or progress_for_python(),
        time.perf_counter(),
    )
    with locked(folder):
        memory = Memory.read(folder)
        options = DataOptions(
            val_fraction=0.0,
            columns=dict(columns or {}),
            skip_bad=skip_bad,
            problem_type=memory.kind,
            fewest_classes=1,
            workers=workers,
            progress=progress,
        )
        ImageClassification.check_options(options)
        task = ImageClassification.read(data, options)
        names = merged_classes(memory, task.classes)
        extractor = attached(folder, task, memory, device)
        every = [digest for split in task.feature_digests().values() for digest in split]
        with progress:
            store = extractor.fill(every, progress)
        task.drop_unread()
        new = Memory(
            memory.kind,
            task.classes,
            memory.heads,
            memory.class_weights,
            task.feature_digests(),
            {split: task.targets(split) for split in task.splits},
        ).reclassed(names)
        more = names[len(memory.classes) :]
        memory = memory.reclassed(names)
        new, notes = without_known(new, memory)
        count = sum(map(len, new.digests.values()))
        if not count:
            raise DataError(f"{folder} knows every image of {data} already; nothing was changed")
        changed = memory.added(new.digests, new.labels, store[new.digests["train"]])
        text = f"{counted(count, 'image')} added from {Path(data).name}"
        notes.insert(0, text + (f", new classes: {listed(more)}" if more else ""))
        return replace_run(Change(folder, task, changed, extractor, notes, progress, began))


def forget(
    run: str | Path,
    images: str | Path | Sequence[str | Path],
    *,
    device: str | None = None,
    progress: Progress | None = None,
) -> Result:
    """Removes images from a run whose head was fitted on frozen features.

    The model is that of a fit to the remaining images, with the settings that the run chose. A
    class whose last training image is removed is removed too. Images are found by their content,
    whatever their names. The features in the cache are not touched (`headstart cache clear`).

    Args:
        run: The result folder.
        images: Images, folders of them, or globs.
        device: Where to compute features; None takes the best there is.
        progress: Where progress is shown; None shows it in notebooks and is silent elsewhere.

    Returns:
        The result, evaluated on the images that were held out where their features are cached.

    Raises:
        ConfigError: The run keeps no statistics of its images, or too little would remain.
        DataError: An image is not among those of the run; nothing is changed then.

    Example:
        >>> import headstart
        >>> headstart.forget("runs/photos", "photos/train/cat/0012.jpg")  # doctest: +SKIP
        Result('runs/photos', accuracy=0.93)
    """
    folder, progress, began = (
        existing_run(run),
        progress or progress_for_python(),
        time.perf_counter(),
    )
    paths = [images] if isinstance(images, str | Path) else list(images)
    with locked(folder):
        memory = Memory.read(folder)
        inputs = image_inputs([Path(path) for path in paths])
        names = [each.name for each in inputs]
        examples = Examples(
            [each.source for each in inputs], np.zeros(len(inputs), dtype=np.int64), names
        )
        data = ImageData(["images"], {"train": examples}, [], memory.kind)
        task = ImageClassification(data, DataOptions(progress=progress))
        task.drop_bad(("train",))
        digests = task.digests("train")
        known = {digest for split in memory.digests.values() for digest in split}
        unknown = [name for name, digest in zip(names, digests, strict=True) if digest not in known]
        if unknown:
            raise DataError(
                f"{len(unknown)} of {len(names)} images are not among those of {folder}:"
                f" {listed(unknown, 5)}; nothing was changed (an image that was edited or"
                " compressed anew is another one)"
            )
        extractor = attached(folder, task, memory, device)
        with progress:
            store = extractor.fill(digests, progress)
        gone = set(digests)
        rows = {
            split: np.array([digest in gone for digest in every], dtype=bool)
            for split, every in memory.digests.items()
        }
        removed = [d for d in memory.digests["train"] if d in gone]
        count = sum(int(each.sum()) for each in rows.values())
        changed = memory.removed(rows, store[removed])
        changed, lost = without_empty_classes(changed)
        notes = [f"{counted(count, 'image')} removed"]
        if lost:
            notes[0] += f", with their last image the classes: {listed(lost)}"
        return replace_run(Change(folder, task, changed, extractor, notes, progress, began))


def existing_run(run: str | Path) -> Path:
    """The folder of a finished image classifier, after an interrupted exchange too.

    Raises:
        ConfigError: There is none, it has another task, or it is an optimized model.
    """
    folder = Path(run).resolve()
    if not folder.exists() and previous_of(folder).is_dir():
        previous_of(folder).rename(folder)  # the exchange was interrupted between two renames
    if not (folder / RESULTS).is_file():
        raise ConfigError(f"{run} holds no finished run; give the --out of headstart train")
    task = read_results(folder)["task"]
    if task != TASK:
        raise ConfigError(
            f"{run} is a run of {task}; update, forget and plan are for image classifiers only."
            " For other data, train again on all of it: known features are not computed again"
        )
    marks = [name for name in FOLDER_LOADERS if (folder / name).is_file()]
    if marks:
        raise ConfigError(
            f"{run} is an optimized model ({marks[0]}), which keeps no statistics of its training"
            " examples; give the run that it was made of, and optimize the result again"
        )
    return folder


def previous_of(folder: Path) -> Path:
    """Where the state before an update is while the new one takes its place."""
    return folder.with_name(f".{folder.name}.previous")


def merged_classes(memory: Memory, classes: Sequence[str]) -> list[str]:
    """The classes of a run, and new ones after them.

    Raises:
        DataError: Regression targets differ.
    """
    if memory.kind == REGRESSION and list(classes) != memory.classes:
        raise DataError(
            f"the new data has the targets {listed(classes)}, the run {listed(memory.classes)};"
            " give the same columns (--column label=…)"
        )
    return [*memory.classes, *(name for name in classes if name not in memory.classes)]


def attached(
    folder: Path, task: ImageClassification, memory: Memory, device: str | None
) -> Extractor:
    """What computes the features that the head of a run reads.

    Raises:
        ConfigError: The network has another number of features.
    """
    best = "cuda" if torch.cuda.is_available() else "cpu"
    place = torch.device(device or best)
    extractor = extractor_of(task, task.attach(folder).to(place).eval(), place)
    width = int(extractor.layer.in_features)
    if width != memory.width:
        raise ConfigError(
            f"the network in {folder} has {width} features and its statistics are of"
            f" {memory.width}: the model was replaced since; train again"
        )
    return extractor


def without_known(new: Memory, memory: Memory) -> tuple[Memory, list[str]]:
    """New examples that the run does not know yet, and notes about the others.

    Raises:
        DataError: An image of the run comes with another label.
    """
    known = {
        digest: (split, memory.labels[split][i])
        for split, digests in memory.digests.items()
        for i, digest in enumerate(digests)
    }
    digests, labels, left_out = {}, {}, 0
    for split, every in new.digests.items():
        kept = []
        for i, digest in enumerate(every):
            _, label = known.get(digest, ("", None))
            if label is not None and not np.array_equal(label, new.labels[split][i]):
                raise DataError(
                    f"a new image (number {i + 1} of {split}) is in the run with another label;"
                    " remove it first (headstart forget)"
                )
            if digest not in known:
                known[digest] = split, new.labels[split][i]
                kept.append(i)
        left_out += len(every) - len(kept)
        digests[split] = [every[i] for i in kept]
        labels[split] = new.labels[split][np.array(kept, dtype=np.int64)]
    notes = [f"{left_out} images that were known already are left out"] if left_out else []
    return dataclasses.replace(new, digests=digests, labels=labels), notes


def without_empty_classes(memory: Memory) -> tuple[Memory, list[str]]:
    """The memory without classes that have no training image, and their names.

    Raises:
        ConfigError: No training image, or a single class, would be left.
    """
    if not memory.digests["train"]:
        raise ConfigError("no training image would be left; delete the run instead")
    if memory.kind != SINGLE:
        return memory, []
    counts = np.bincount(memory.labels["train"], minlength=len(memory.classes))
    kept = [name for name, count in zip(memory.classes, counts, strict=True) if count]
    if len(kept) < 2:
        raise ConfigError(f"only the class {kept[0]!r} would be left; delete the run instead")
    lost = [name for name in memory.classes if name not in kept]
    return (memory.reclassed(kept) if lost else memory), lost


# A new state --------------------------------------------------------------------------------------


@dataclasses.dataclass
class Change:
    """A run whose examples have changed.

    Args:
        folder: The result folder.
        task: The images that were read.
        memory: The examples from now on.
        extractor: What computes features.
        notes: What was changed.
        progress: Shows what happens.
        began: `time.perf_counter()` of the call.
    """

    folder: Path
    task: ImageClassification
    memory: Memory
    extractor: Extractor
    notes: list[str]
    progress: Progress
    began: float


def replace_run(change: Change) -> Result:
    """Fits the head of a changed run, evaluates it, and exchanges the result folder."""
    memory, extractor, notes = change.memory, change.extractor, change.notes
    store = extractor.store()
    features = {
        split: store[digests]
        for split, digests in memory.digests.items()
        if all(digest in store for digest in digests)
    }
    problem = problem_of(memory.kind)
    problem.look(memory.classes, memory.labels["train"], memory.class_weights or "none")
    if memory.sums is not None:
        weight, bias = memory.sums.solve(memory.heads[0])
    elif "train" in features:
        weights = problem.weights_of(memory.labels["train"])
        weight, bias = refit(memory, features["train"], weights)
    else:
        missing = sum(digest not in store for digest in memory.digests["train"])
        raise ConfigError(
            f"the features of {missing} of {len(memory.digests['train'])} images are not in the"
            f" cache, and a {memory.heads[0].kind} head is fitted to all of them; train again on"
            " all images. Nothing was changed"
        )
    put_head(extractor.model, extractor.layer, weight, bias, memory.classes)
    evaluations = {}
    for split, x in features.items():
        if split != "train" and len(x):
            scores = np.asarray(x @ weight.T + bias, dtype=np.float32)
            metrics, interval = problem.measure(scores, memory.labels[split])
            details = {"logits": scores, "labels": memory.labels[split]}
            evaluations[split] = Evaluation(split, len(x), metrics, interval, details)
    others = [split for split in memory.digests if split != "train" and memory.digests[split]]
    if missing_splits := [split for split in others if split not in evaluations]:
        notes.append(
            f"not evaluated on the {listed(missing_splits)} images, whose features are not in the"
            " cache: headstart evaluate does it"
        )
    if memory.kind == SINGLE and not evaluations and (change.folder / CONFIDENCE).is_file():
        notes.append(f"there is no confidence from which on to predict any more ({CONFIDENCE})")
    if memory.kind == SINGLE and "train" not in features and (change.folder / UNKNOWN).is_file():
        notes.append(
            f"predictions have no p-value any more ({UNKNOWN}): not all training images have"
            " features in the cache"
        )
    found = forecast(memory, features)
    reference = None
    if memory.kind == SINGLE and "train" in features:
        held = [x for split, x in features.items() if split != "train" and len(x)]
        held_out = np.concatenate(held) if held else None
        reference = fit_reference(features["train"], memory.labels["train"], held_out)
    recipe = Recipe.from_dict(Request.read(change.folder).recipe)
    result = Result(change.folder, recipe, evaluations, forecast=found, notes=notes)
    result.reference = reference
    with exchanged(change.folder) as new:
        write_state(new, change, result)
    for note in notes:
        change.progress.report(note)
    change.progress.report(summary(change.task, result))
    if found is not None:
        change.progress.report(found.text())
    return result


def forecast(memory: Memory, features: Mapping[str, NDArray[Any]]) -> Forecast | None:
    """What more examples should bring, where all features are cached."""
    least = max(FEWEST, FEWEST_OF_CLASS * len(memory.classes))
    if memory.kind != SINGLE or "train" not in features or len(features["train"]) < least:
        return None
    others = [split for split in features if split != "train"]
    held_out = None
    if others:
        rows = np.concatenate([features[split] for split in others])
        held_out = rows, np.concatenate([memory.labels[split] for split in others])
    return forecast_of(features["train"], memory.labels["train"], memory.classes, held_out)


def put_head(
    network: nn.Module,
    layer: nn.Linear,
    weight: NDArray[Any],
    bias: NDArray[Any],
    classes: Sequence[str],
) -> None:
    """Writes a head, perhaps of other classes, into a network and its configuration."""
    config: Any = network.config
    new = nn.Linear(layer.in_features, len(classes)).to(layer.weight)
    with torch.no_grad():
        new.weight.copy_(torch.from_numpy(np.ascontiguousarray(weight)))
        new.bias.copy_(torch.from_numpy(np.ascontiguousarray(bias)))
    name = next(name for name, module in network.named_modules() if module is layer)
    network.set_submodule(name, new)
    config.id2label = dict(enumerate(classes))
    config.label2id = {label: i for i, label in enumerate(classes)}


@contextmanager
def exchanged(folder: Path) -> Iterator[Path]:
    """A new folder that takes the place of another at the end of the block.

    After a failure the old folder is as it was. Between the two renames a killed process leaves
    the old state as `.NAME.previous`, which the next command puts back.
    """
    new, old = folder.with_name(f".{folder.name}.new"), previous_of(folder)
    for leftover in (new, old):
        shutil.rmtree(leftover, ignore_errors=True)
    try:
        shutil.copytree(folder, new, symlinks=True, ignore=shutil.ignore_patterns(*REPLACED))
        yield new
        folder.rename(old)
        new.rename(folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)


def write_state(new: Path, change: Change, result: Result) -> None:
    """Writes everything that an update changes into the new folder."""
    memory, notes, network = change.memory, change.notes, change.extractor.model
    result.seconds = time.perf_counter() - change.began
    saved: Any = network
    saved.save_pretrained(new)
    memory.write(new)
    if result.reference is not None:
        result.reference.write(new)
    looks = changed_looks(change.folder, change.task, memory.digests["train"])
    write_digests(new, memory.digests, looks)
    if (evaluation := result.evaluation) is not None:
        evaluation.max_error = Request.read(change.folder).options["extra"].get("max_error")
        write_confidence(new, evaluation)
    values = read_results(change.folder)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    history = [*values.get("updates", []), {"finished": now, "notes": list(notes)}]
    values |= {
        "evaluations": {
            split: figures(each, memory.kind, memory.classes)
            for split, each in result.evaluations.items()
        },
        "draws": None,
        "enough": result.forecast and result.forecast.to_dict(),
        "splits": {split: len(digests) for split, digests in memory.digests.items()},
        "notes": [*values.get("notes", []), *notes],
        "updates": history,
        "data_fingerprint": combined_fingerprint(
            memory.classes,
            {split: Examples([], labels, []) for split, labels in memory.labels.items()},
            memory.digests,
        ),
        "seconds": round(result.seconds, 2),
        "finished": now,
    }
    described = f"{sum(values['splits'].values())} images, {len(memory.classes)} classes"
    write_card(new, change.task, values, result.recipe, [described])
    atomic_write(new / RESULTS, json.dumps(values, indent=2) + "\n")
