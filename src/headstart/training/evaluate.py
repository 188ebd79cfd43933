"""A model evaluated on labeled data; `headstart evaluate` and `headstart.evaluate(...)`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from headstart.auto import AutoConfig
from headstart.data.options import DataOptions
from headstart.errors import DataError
from headstart.pipelines.base import read_results
from headstart.progress import Progress, progress_for_python
from headstart.tasks import Evaluation, Task, task_class
from headstart.tasks.semantic_segmentation import CLASSES
from headstart.training.request import RESULTS, absolute
from headstart.training.seen import looks_trained_on, trained_on
from headstart.training.world import World


def evaluate(
    model: str | Path,
    data: str | Path,
    *,
    columns: Mapping[str, str] | None = None,
    skip_bad: bool = False,
    split: str | None = None,
    task_options: Mapping[str, Any] | None = None,
    device: str | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> tuple[Task, Evaluation]:
    """Evaluates a result folder (or any classifier) on labeled data.

    Of data without a validation or test split of its own, the examples that the model was not
    trained on are taken, where the result folder knows them by their content.

    Args:
        model: A result folder, Hub id or authors' name, whose class names the data uses.
        data: As for `train`.
        columns: Columns of a table by role.
        skip_bad: Leave out unreadable examples.
        split: Which split of the data; None takes the test data, else the validation data, else
            what was held out, else everything.
        task_options: As for `train`.
        device: Where to compute.
        workers: Threads that read and decode.
        progress: Shows what is read and evaluated; None shows it in notebooks only.

    Returns:
        The task that has read the data, and the evaluation.

    Raises:
        DataError: The data cannot be read, or has no such split.

    Example:
        >>> import headstart
        >>> _, found = headstart.evaluate("runs/photos", "photos/")  # doctest: +SKIP
        >>> found.split, found.metrics["accuracy"]  # doctest: +SKIP
        ('validation', 0.925)
    """
    saved = Path(model) / RESULTS
    task_name = read_results(Path(model))["task"] if saved.is_file() else "image-classification"
    config, extra = AutoConfig.from_pretrained(model), absolute(task_options or {})
    labels = [name for _, name in sorted(config.id2label.items())]
    classes = Path(model) / CLASSES
    if task_name == "semantic-segmentation" and classes.is_file():
        extra = {"classes": str(classes)} | extra
    kind = config.problem_type
    if kind is None and task_name == "image-classification":
        kind = "single_label_classification"
    options = DataOptions(
        classes=labels,
        columns=dict(columns or {}),
        skip_bad=skip_bad,
        problem_type=kind,
        workers=workers,
        extra=extra,
        progress=progress or progress_for_python(),
    )
    task_class(task_name).check_options(options)
    task = task_class(task_name).read(data, options)
    chosen = split or next(name for name in ("test", "validation", "train") if name in task.splits)
    if chosen not in task.splits:
        raise DataError(
            f"{data} has no {chosen} data; it has {', '.join(task.splits)}. Leave split= out to"
            " evaluate what the model was not trained on"
        )
    notes = held_out(Path(model), task, chosen, split is None)
    for note in notes:
        options.progress.report(note)
    network = task.attach(model).eval()
    # an optimized model stays where it was optimized
    fixed = getattr(network, "fixed_device", None)
    place = World(device or fixed).device
    task.prepare(None, (chosen,))
    evaluation = task.evaluate(network.to(place), chosen, place)
    alike = looks_trained_on(Path(model), task, chosen)
    if not notes and alike is not None and alike.any():
        notes.append(
            f"warning: {alike.sum()} of these {len(alike)} images look the same as images that the"
            " model was trained on, so the result may be too good"
        )
        options.progress.report(notes[-1])
    evaluation.notes = notes
    return task, evaluation


def held_out(folder: Path, task: Task, split: str, choose: bool) -> list[str]:
    """Leaves out examples that the model was trained on where the data is not split, and says
    so.
    """
    seen = trained_on(folder, task, split)
    if seen is None or not seen.any():
        return []
    count = int(seen.sum())
    if choose and split == "train" and not seen.all():
        task.keep(split, np.flatnonzero(~seen))
        return [
            f"evaluating the {len(seen) - count} of {len(seen)} examples that the model was not"
            f" trained on (the split {split!r}, given by name, is evaluated whole)"
        ]
    return [
        f"warning: the model was trained on {count} of these {len(seen)} examples, so the result is"
        " too good"
    ]
