"""`headstart plan`: which images to label next, for a run whose head was fitted on features."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from headstart.data.examples import Examples
from headstart.data.images import ImageData
from headstart.data.inputs import image_inputs
from headstart.data.labels import REGRESSION, SINGLE
from headstart.data.options import DataOptions
from headstart.errors import ConfigError, DataError, counted
from headstart.features.memory import Memory
from headstart.features.plan import FEW, POOL, margins_of, typical, uncertain
from headstart.progress import Progress, progress_for_python
from headstart.tasks.image_classification import ImageClassification
from headstart.training.update import attached, existing_run


@dataclass(frozen=True)
class Planned:
    """An image to label.

    Args:
        image: Its file.
        reason: "typical" or "uncertain".
    """

    image: Path
    reason: str


def plan(
    run: str | Path,
    unlabeled: str | Path | Sequence[str | Path],
    *,
    number: int = 20,
    device: str | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[Planned]:
    """The images to label next, the best first.

    With at most 20 labels of a class on average these are typical images of groups without labels
    (TypiClust), with more they are images that the model is uncertain about, of different groups.

    Args:
        run: Result folder of an image classifier whose head was fitted on frozen features.
        unlabeled: Images, folders of them, or globs. Images that the run knows are left out.
        number: How many images.
        device: Where to compute features; None takes the best there is.
        seed: Decides the groups.
        progress: Where progress is shown; None shows it in notebooks and is silent elsewhere.

    Returns:
        At most `number` images.

    Raises:
        ConfigError: The run keeps no statistics of its images.
        DataError: No image is left that the run does not know.

    Example:
        >>> import headstart
        >>> headstart.plan("runs/photos", "unlabeled/", number=2)  # doctest: +SKIP
        [Planned(image=PosixPath('unlabeled/07.jpg'), reason='typical'), ...]
    """
    if number < 1:
        raise ConfigError(f"number={number}; it must be at least 1")
    folder, progress = existing_run(run), progress or progress_for_python()
    memory = Memory.read(folder)
    paths = [unlabeled] if isinstance(unlabeled, str | Path) else list(unlabeled)
    inputs = image_inputs([Path(path) for path in paths])
    files = [each.source for each in inputs]
    if not all(isinstance(file, Path) for file in files):
        raise DataError("images to plan with must be files; unpack the tar or table first")
    names = [each.name for each in inputs]
    examples = Examples(files, np.zeros(len(files), dtype=np.int64), names)
    data = ImageData(["images"], {"train": examples}, [], memory.kind)
    task = ImageClassification(data, DataOptions(skip_bad=True, progress=progress))
    if task.bad:
        progress.report(f"left out because they cannot be read: {counted(len(task.bad), 'image')}")
    task.drop_bad(("train",))
    known = {digest for split in memory.digests.values() for digest in split}
    _, first = np.unique(task.digests("train"), return_index=True)
    new = np.array([i for i in first if task.digests("train")[i] not in known], dtype=np.int64)
    if not len(new):
        raise DataError("the run knows every one of these images; give others")
    if len(new) > POOL:
        progress.report(f"looking among {POOL} of {len(new)} images, randomly chosen")
        new = np.random.default_rng([seed, 0x91A]).permutation(new)[:POOL]
    task.keep("train", np.sort(new))
    extractor = attached(folder, task, memory, device)
    with progress:
        store = extractor.fill(task.digests("train"), progress)
    task.drop_unread()
    features = store[task.digests("train")]
    present = [digest for digest in memory.digests["train"] if digest in store]
    if len(present) < len(memory.digests["train"]):
        missing = len(memory.digests["train"]) - len(present)
        progress.report(
            f"the features of {missing} labeled images are not in the cache: not looked at"
        )
    labeled = store[present] if present else features[:0]
    few = len(memory.digests["train"]) <= FEW * len(memory.classes)
    if few or memory.kind == REGRESSION:
        chosen, reason = typical(labeled, features, number, seed), "typical"
    else:
        layer = extractor.layer
        weight, bias = (each.detach().cpu().numpy() for each in (layer.weight, layer.bias))
        margins = margins_of(features @ weight.T + bias, memory.kind == SINGLE)
        chosen, reason = uncertain(features, margins, number, seed), "uncertain"
    images = task.examples["train"].images
    return [Planned(Path(images[i]), reason) for i in chosen]


def copy_images(planned: Sequence[Planned], folder: Path) -> None:
    """Copies images to a new folder, numbered in their order.

    Raises:
        ConfigError: The folder holds something already.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"--copy {folder} exists and is not an empty folder; choose another")
    folder.mkdir(parents=True, exist_ok=True)
    digits = len(str(len(planned)))
    for i, each in enumerate(planned):
        shutil.copy2(each.image, folder / f"{i + 1:0{digits}}-{each.image.name}")
