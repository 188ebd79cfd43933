"""Which sections the report of a task has.

A task with a report of its own has one function here: evaluated task → sections.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headstart.data.cache import decode, parallel
from headstart.data.duplicates import FEWEST_PIXELS, FLAT, difference_hash, pairs_in
from headstart.data.labels import SINGLE
from headstart.metrics.segmentation import mean_iou
from headstart.report.classification import file_name
from headstart.report.distillation import distillation_sections, text_distillation_sections
from headstart.report.explain import TOGETHER, explain_several
from headstart.report.masked_images import masked_image_sections
from headstart.report.page import Section
from headstart.report.problems import duplicate_section, problem_sections
from headstart.report.segmentation import segmentation_sections
from headstart.report.series import series_sections
from headstart.report.texts import (
    answer_sections,
    choice_sections,
    entity_sections,
    tag_sections,
    text_sections,
)
from headstart.tasks.base import Evaluation, Task
from headstart.tasks.image import UNOPENED

# images of a fitted head whose hashes are looked up; those not cached are decoded once more
DECODED = 5000


def sections_of(task: Task, evaluation: Evaluation) -> list[Section]:
    """The sections that only this task has; none where its numbers are all there is to show."""
    build = SECTIONS.get(task.name)
    return [] if build is None else build(task, evaluation)


def image_sections(task: Any, evaluation: Evaluation) -> list[Section]:
    """Sections of an image classifier: classes, errors with explanations, duplicates."""
    examples, model = task.examples[evaluation.split], task.model
    heat = 1.0 if evaluation.calibration is None else evaluation.calibration.temperature

    @lru_cache(maxsize=TOGETHER)  # images and their explanations are made side by side
    def pixels(index: int) -> NDArray[np.uint8]:
        return decode(examples.images[index])

    def explained(shown: Sequence[tuple[int, str]]) -> Iterator[NDArray[np.uint8]]:
        images, labels = (pixels(index) for index, _ in shown), [label for _, label in shown]
        for found in explain_several(model, task.processor, images, labels, heat):
            yield found.overlay(360)

    looked_at = None if model is None else explained
    sections = problem_sections(
        task.problem.kind, evaluation, task.classes, examples.names, pixels, looked_at
    )
    hashes = hashes_of(task)
    if task.problem.kind == SINGLE and evaluation.split != "train":
        right = evaluation.details["logits"].argmax(axis=1) == evaluation.details["labels"]
        sections += series_sections(hashes[evaluation.split], hashes["train"], right)
    return [*sections, duplicates_of(task, hashes)]


def hashes_of(task: Any) -> dict[str, NDArray[np.uint64]]:
    """Difference hash of every image by split; `FLAT` where its pixels are not at hand.

    They are remembered: the model's folder and its report have them.
    """
    if {split: len(each) for split, each in task.looks.items()} != task.splits:
        task.looks = _hashes_of(task)
    found: dict[str, NDArray[np.uint64]] = task.looks
    return found


def _hashes_of(task: Any) -> dict[str, NDArray[np.uint64]]:
    """As `hashes_of`, computed."""

    def look(at: tuple[str, int]) -> int:
        split, index = at
        cache = task.caches.get(split)
        small = task.sizes[split][index].min() < FEWEST_PIXELS
        if cache is None or cache.pixels is None or small:
            return FLAT
        return difference_hash(cache[index])

    if not task.caches and sum(task.splits.values()) <= DECODED:  # only a head was fitted
        return {s: task.difference_hashes(s, np.arange(n)) for s, n in task.splits.items()}
    hashes = {split: np.full(n, FLAT, dtype=np.uint64) for split, n in task.splits.items()}
    opened = opened_rows(task)
    every = [(split, row) for split, rows in opened.items() for row in rows.tolist()]
    with task.options.progress.counting("hashing images", len(every)) as seen:
        found = parallel(look, every, task.options.workers)
        for (split, row), value in zip(every, found, strict=True):
            hashes[split][row] = value
            seen(1)
    return hashes


def opened_rows(task: Any) -> dict[str, NDArray[np.int64]]:
    """Numbers of the images of each split that were opened before training."""
    return {split: np.flatnonzero(task.sizes[split][:, 0] != UNOPENED) for split in task.splits}


def duplicates_of(task: Any, hashes: dict[str, NDArray[np.uint64]]) -> Section:
    """Images that are the same, or look so where their pixels are at hand; among those that were
    opened before training.
    """
    opened = opened_rows(task)
    every = [(split, index) for split, rows in opened.items() for index in rows.tolist()]
    together = np.concatenate([hashes[split][rows] for split, rows in opened.items()])
    digests = [task.digests_of[split][index] for split, index in every]
    pairs = pairs_in(task.data, every, digests, together)
    shown = {name for pair in pairs for name in (pair.first, pair.second)}
    images = {
        part.names[index]: part.images[index]
        for split, part in task.examples.items()
        for index in opened[split].tolist()
        if part.names[index] in shown
    }
    total = sum(task.splits.values())
    return duplicate_section(pairs, images, (len(every), total) if len(every) < total else None)


def mask_sections(task: Any, evaluation: Evaluation) -> list[Section]:
    """Sections of a segmentation: baselines, classes, the worst images and some others."""
    confusions, found = evaluation.details["confusions"], []
    for key, predicted in evaluation.details.items():
        if key.startswith("answer/"):
            index = int(key.removeprefix("answer/"))
            image, labels = task.pair(evaluation.split, index)
            name = file_name(task.names(evaluation.split)[index])
            found.append((name, image, labels, predicted, mean_iou(confusions[index])))
    shown = sorted(found, key=lambda each: (each[4], each[0]))
    return segmentation_sections(confusions.sum(0), task.classes.names, task.colors, shown)


def word_sections(task: Any, evaluation: Evaluation) -> list[Section]:
    """Sections of a tagger: entities, or tags where each word has one by itself."""
    sections = entity_sections if task.finds_entities else tag_sections
    return sections(task, evaluation)


SECTIONS: dict[str, Callable[[Any, Evaluation], list[Section]]] = {
    "image-classification": image_sections,
    "distillation": distillation_sections,
    "text-distillation": text_distillation_sections,
    "semantic-segmentation": mask_sections,
    "masked-image-modeling": masked_image_sections,
    "text-classification": text_sections,
    "token-classification": word_sections,
    "question-answering": answer_sections,
    "multiple-choice": choice_sections,
}
