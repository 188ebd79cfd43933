"""`headstart audit`: what is wrong with a data set of labelled images before anybody trains on it.

Exact duplicates have the same bytes. Near duplicates have almost the same difference hash: 64
comparisons of neighboring pixels of an image shrunk to 9 x 8 gray values, which scaling, mild
compression and small changes of brightness leave alone. Bad photos (blurred, dark, of an odd size…)
are found by their pixels, see `quality`. Outliers and labels that are probably wrong
are found in the features of a network, see `suspects`; they are worth a look, not certain.
"""

import time
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from headstart.checkpoint import atomic_write
from headstart.data.cache import decode, inspect, parallel
from headstart.data.duplicates import Pair, difference_hash, label_of, pairs_in
from headstart.data.examples import distinct
from headstart.data.images import ImageData, read_images
from headstart.data.labels import SINGLE
from headstart.data.options import IMAGE_ROLES, DataOptions, check_roles
from headstart.data.quality import KINDS, Look, bad_photos, look
from headstart.data.sources.raw import Source
from headstart.errors import InputError, counted
from headstart.progress import duration
from headstart.report.page import GalleryImage, Section, Table, image_source, render

TEXTS = {
    "blurred": "Without fine detail, as out of focus or moved. Others of this data are sharper.",
    "dark": "Hardly any pixel is bright. Others of this data are brighter.",
    "over-exposed": "Nearly all pixels are white or close to it.",
    "nearly uniform": "One brightness nearly everywhere: nothing can be seen.",
    "odd-sized": "Much smaller or larger than the others.",
    "odd-shaped": "Much wider or taller than the others: resizing to a square distorts them.",
    "grayscale": "Without color where most others have some: the color may give the class away.",
}
FEW_SECONDS = 5.0  # up to which a time is not announced as a number
MEASURED = 32  # images by which the time is estimated
SHOWN = 60  # images of one kind on the page


@dataclass(frozen=True)
class Mislabelled:
    """An image whose label is probably wrong.

    Args:
        name: How it is named to the user.
        split: Its split.
        label: Its class.
        likely: The class that it looks like.
        probability: What a head that has not seen it gives its class.
        likely_probability: What it gives the other.
    """

    name: str
    split: str
    label: str
    likely: str
    probability: float
    likely_probability: float


@dataclass(frozen=True)
class Outlier:
    """An image unlike all others.

    `distance` is in robust standard deviations of the distances of all images.
    """

    name: str
    split: str
    label: str
    distance: float


@dataclass(frozen=True)
class BadPhoto:
    """An image that will hardly help: what is bad about it, and what was measured."""

    name: str
    split: str
    label: str
    kind: str
    reason: str


@dataclass
class Audit:
    """What was found.

    Args:
        images: How many images there are.
        unreadable: Name and reason of each that cannot be read.
        pairs: Duplicates.
        bad_photos: Images that will hardly help, by kind.
        mislabelled: Images whose label is probably wrong, the clearest first.
        agreement: Fraction of all labels that what doubts these agrees with.
        outliers: Images unlike all others, the farthest first.
        images: Where each image is, by name.
    """

    images: int
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    pairs: list[Pair] = field(default_factory=list)
    bad_photos: list[BadPhoto] = field(default_factory=list)
    mislabelled: list[Mislabelled] = field(default_factory=list)
    agreement: float | None = None
    outliers: list[Outlier] = field(default_factory=list)
    sources: dict[str, Source] = field(default_factory=dict, repr=False)

    def lines(self) -> list[str]:
        """What was found, in numbers."""
        pairs = ", ".join(
            counted(len(found), noun)
            for found, noun in (
                (self.pairs, "duplicate"),
                (self.leaks, "leak"),
                (self.contradictions, "contradiction"),
            )
        )
        kinds = Counter(each.kind for each in self.bad_photos)
        counts = ", ".join(f"{kinds[kind]} {kind}" for kind in KINDS if kinds[kind])
        bad = counted(len({each.name for each in self.bad_photos}), "bad photo")
        suspects = [
            f"{len(self.mislabelled)} probably mislabelled",
            counted(len(self.outliers), "outlier"),
        ]
        if self.mislabelled and self.agreement is not None:
            suspects[0] += f" (by a head that agrees with {self.agreement:.0%} of all labels)"
        return [
            counted(self.images, "image"),
            f"{len(self.unreadable)} unreadable",
            pairs,
            bad + (f" ({counts})" if counts else ""),
            ", ".join(suspects),
        ]

    @property
    def leaks(self) -> list[Pair]:
        """Duplicates across splits."""
        return [pair for pair in self.pairs if pair.leaks]

    @property
    def contradictions(self) -> list[Pair]:
        """Duplicates with different classes."""
        return [pair for pair in self.pairs if pair.contradicts]


def audit(
    data: str | Path | ImageData,
    options: DataOptions | None = None,
    model: str | Path | None = "bit-mini",
) -> Audit:
    """Looks for unreadable images, duplicates, leaks between splits, bad photos, contradicting and
    probably wrong labels, and outliers.

    Args:
        data: A data set as `headstart.train` takes it, or one that was read.
        options: How to read it; by default without holding anything out.
        model: Network whose features tell wrong labels and outliers; None leaves these out.
    """
    options = options or DataOptions(val_fraction=0.0)
    check_roles(options.columns, IMAGE_ROLES, "an audit")
    read = data if isinstance(data, ImageData) else read_images(data, options)
    every = [(split, i) for split, examples in read.splits.items() for i in range(len(examples))]
    found = Audit(len(every))
    found.sources = {
        name: image
        for part in read.splits.values()
        for name, image in zip(part.names, part.images, strict=True)
    }
    options.progress.report(
        f"{len(every)} images: {announced(_looking_seconds(read, options))}"
        " to look at them on this machine"
    )
    results = _looked_at(read, options)
    good = [n for n, result in enumerate(results) if not isinstance(result, str)]
    looks = [result[2] for result in results if not isinstance(result, str)]
    found.unreadable = [
        (read.splits[every[n][0]].names[every[n][1]], r)
        for n, r in enumerate(results)
        if isinstance(r, str)
    ]
    for bad in bad_photos(looks):
        split, i = every[good[bad.index]]
        where = read.splits[split].names[i], split, label_of(read, split, i)
        found.bad_photos.append(BadPhoto(*where, bad.kind, bad.reason))
    digests = [results[n][0] for n in good]
    hashes = np.array([results[n][1] for n in good], dtype=np.uint64)
    found.pairs = pairs_in(read, [every[n] for n in good], digests, hashes)
    if model is not None and good:
        _doubt(found, read, replace(options, skip_bad=True), str(model))
    return found


def _doubt(found: Audit, read: ImageData, options: DataOptions, model: str) -> None:
    """Adds wrong labels and outliers, by the features of a network."""
    import torch

    from headstart.features.extract import extractor_of
    from headstart.recipe import Recipe
    from headstart.report.suspects import doubtful_labels, outliers
    from headstart.tasks.image_classification import ImageClassification

    task = ImageClassification(ImageData(read.classes, dict(read.splits), [], read.kind), options)
    task.trains = False  # a class may be left with few images
    network = task.build(model, Recipe(tune="head")).eval()
    everything = [digest for names in task.feature_digests().values() for digest in names]
    extractor, progress = extractor_of(task, network, torch.device("cpu")), options.progress
    known = extractor.store()
    missing = [each for each in dict.fromkeys(everything) if each and each not in known]
    if missing:
        seconds = extractor.seconds(missing, task.feature_sizes(missing))
        progress.report(f"features of {len(missing)} images: {announced(seconds)} on this machine")
    with progress:
        store = extractor.fill(everything, progress)
    task.drop_unread()
    digests = task.feature_digests()
    splits = task.data.splits
    every = [(split, i) for split in digests for i in range(len(digests[split]))]
    rows = store[[each for names in digests.values() for each in names]]  # (N, D)
    for index, distance in outliers(rows, progress):
        split, i = every[index]
        found.outliers.append(
            Outlier(splits[split].names[i], split, label_of(task.data, split, i), distance)
        )
    if read.kind != SINGLE:
        return
    labels = np.concatenate([splits[split].labels for split in digests])
    doubts, found.agreement = doubtful_labels(rows, labels, len(read.classes), progress=progress)
    for doubt in doubts:
        split, i = every[doubt.index]
        label, likely = read.classes[doubt.label], read.classes[doubt.likely]
        chances = (doubt.label_probability, doubt.likely_probability)
        found.mislabelled.append(
            Mislabelled(splits[split].names[i], split, label, likely, *chances)
        )


def write_page(found: Audit, path: Path, data: str) -> None:
    """Writes what was found as one page with the images.

    Args:
        found: What `audit` found.
        path: The page.
        data: What was audited.
    """

    def image(name: str, caption: str) -> GalleryImage:
        return GalleryImage(image_source(decode(found.sources[name])), f"{caption}\n{name}")

    sections = []
    if found.unreadable:
        sections.append(Section("Unreadable", table=Table(("image", "reason"), found.unreadable)))
    for title, text, pairs in (
        (
            "Leaks",
            "The same image in training and evaluation data: the result is too good.",
            found.leaks,
        ),
        ("Contradictions", "The same image with two labels.", found.contradictions),
        (
            "Duplicates",
            "The same image more than once.",
            [pair for pair in found.pairs if not pair.leaks and not pair.contradicts],
        ),
    ):
        shown = [
            image(name, f"{pair.kind}, {pair.splits[n]}, {pair.labels[n]}")
            for pair in pairs[:SHOWN]
            for n, name in enumerate((pair.first, pair.second))
        ]
        if shown:
            sections.append(Section(f"{title} ({len(pairs)})", text, images=shown))
    for kind in KINDS:
        bad = [each for each in found.bad_photos if each.kind == kind]
        shown = [image(each.name, f"{each.label}: {each.reason}") for each in bad[:SHOWN]]
        if bad:
            title = f"{kind.capitalize()} ({len(bad)})"
            sections.append(Section(title, TEXTS[kind], images=shown))
    if found.mislabelled:
        text = (
            "A classifier on the features of a network, which had not seen these images, finds"
            " their labels less probable than right ones are. Look at each before you change it."
            f" It agrees with {found.agreement:.0%} of all labels."
        )
        shown = [
            image(
                each.name,
                f"is {each.label} ({each.probability:.0%}), looks like {each.likely}"
                f" ({each.likely_probability:.0%})",
            )
            for each in found.mislabelled[:SHOWN]
        ]
        sections.append(
            Section(f"Probably mislabelled ({len(found.mislabelled)})", text, images=shown)
        )
    if found.outliers:
        shown = [
            image(each.name, f"{each.label}, {each.distance:.1f} deviations away")
            for each in found.outliers[:SHOWN]
        ]
        sections.append(
            Section(f"Outliers ({len(found.outliers)})", "Unlike every other image.", images=shown)
        )
    atomic_write(path, render(title=f"Audit of {data}", found=found.lines(), sections=sections))


def _looking_seconds(read: ImageData, options: DataOptions) -> float:
    """About how long `_looked_at` takes, from a few images."""
    sources = [image for each in read.splits.values() for image in each.images[:MEASURED]]
    began = time.perf_counter()
    looked = sum(1 for _ in parallel(_look, sources, options.workers))
    elapsed = time.perf_counter() - began
    return elapsed / max(1, looked) * sum(map(len, read.splits.values()))


def announced(seconds: float) -> str:
    """A time as it is announced: imports and the network's loading take some seconds too."""
    return "a few seconds" if seconds < FEW_SECONDS else f"about {duration(seconds)}"


def _looked_at(read: ImageData, options: DataOptions) -> list[tuple[str, int, Look] | str]:
    """`_look` of every image; a file that many rows name is read once."""
    found: list[tuple[str, int, Look] | str] = []
    total = sum(map(len, read.splits.values()))
    with options.progress.counting("looking at images", total) as seen:
        for examples in read.splits.values():
            first, which = distinct(examples.images)
            rows = np.bincount(which, minlength=len(first)).tolist()
            looks: list[tuple[str, int, Look] | str] = []
            for look_ in parallel(
                _look, (examples.images[i] for i in first.tolist()), options.workers
            ):
                seen(rows[len(looks)])
                looks.append(look_)
            found += [looks[i] for i in which.tolist()]
    return found


def _look(source: Source) -> tuple[str, int, Look] | str:
    """Content hash, difference hash and qualities of an image, or why it cannot be read."""
    seen = inspect(source)
    if isinstance(seen, str):
        return seen
    try:
        pixels = decode(source)
        return seen[0], difference_hash(pixels), look(pixels)
    except InputError as error:
        return str(error)
