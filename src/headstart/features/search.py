"""Search among embeddings by cosine similarity, and groups of near duplicates.

Exact unless the file is large and `usearch` (extra `[search]`) is installed: then an index of it
(HNSW) is made once, in the user's cache folder.

Letters: N rows, D features, K neighbors.
"""

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headstart.data.cache import cache_folder
from headstart.data.embeddings import Embeddings, Facts, embedding_blocks, read_facts
from headstart.errors import DataError, InputError
from headstart.features.embed import Embedder
from headstart.images.decode import load_image

Floats = NDArray[np.float32]
LARGE = 100_000  # rows from which on an index is worth its time
BLOCK = 256  # rows that are compared with all others together

log = logging.getLogger("headstart")


@dataclass(frozen=True)
class Neighbor:
    """A row that is near a query.

    Args:
        row: Its number in the file, from 0.
        name: How the user knows it.
        similarity: Cosine of the angle between the vectors, -1 to 1.
        content: The text itself; "" for images.
    """

    row: int
    name: str
    similarity: float
    content: str = ""


@dataclass(frozen=True)
class Duplicates:
    """Rows that are almost the same.

    Args:
        first: The first row of them; its similarity is 1.
        others: Later rows, with their similarity to the first.
    """

    first: Neighbor
    others: list[Neighbor]


def unit(features: Floats) -> Floats:
    """Vectors (N, D) of length 1; zero vectors and rows without a vector stay as they are."""
    lengths: Floats = np.linalg.norm(features, axis=-1, keepdims=True).astype(np.float32)
    lengths[lengths == 0] = 1
    scaled: Floats = features / lengths
    return scaled


def vector_at(path: Path, row: int) -> Floats:
    """The vector (D,) of one row of a file.

    Raises:
        InputError: There is no such row.
        DataError: It has no vector.
    """
    first = 0
    for block in embedding_blocks(path):
        if first <= row < first + len(block):
            at = row - first
            if np.isnan(block.features[at]).any():
                raise DataError(f"row {row} of {path} has no vector: {block.errors[at]}")
            found: Floats = block.features[at]
            return found
        first += len(block)
    raise InputError(f"there is no row {row} in {path}; give a row from 0 to {first - 1}")


def query_vector(
    path: Path, query: str, model: str | None = None, device: Any = None
) -> tuple[Floats, int | None]:
    """The vector of what is searched for.

    Args:
        path: What `headstart embed` wrote.
        query: An image, a text (where the file is of texts), or the number of a row.
        model: Model that made the file; None is the one that it names.
        device: Where to compute.

    Returns:
        (D,) and, where the query is a row, its number.

    Raises:
        InputError: No such row or image, or another model made the file.
        DataError: The image cannot be read, or the row has no vector.
    """
    if query.isascii() and query.isdigit() and not Path(query).is_file():
        return vector_at(path, int(query[:20])), int(query[:20])
    facts = read_facts(path)
    embedder = Embedder(model or facts.model, device, long="cut")
    if embedder.key != facts.key:
        raise InputError(
            f"{path} was made by {facts.model} with other weights or preprocessing (key"
            f" {facts.key}) than {embedder.name} has now (key {embedder.key}); give the model that"
            " made it with --model, or embed again"
        )
    if embedder.reads_text:
        return embedder.of_texts([query], ["the query"])[0], None
    try:
        pixels = load_image(Path(query))
    except InputError as error:
        if Path(query).is_file():
            raise DataError(str(error)) from None
        raise
    return embedder.of_images([embedder.pixel_values(pixels)])[0], None


def nearest(path: Path, query: Floats, top: int, *, exact: bool = False) -> list[Neighbor]:
    """The rows of a file that are nearest to a vector, best first; equal ones in their order.

    Args:
        path: What `headstart embed` wrote.
        query: (D,), made by the same model.
        top: How many.
        exact: Compare every row even where an index could be used.

    Raises:
        InputError: The query has another length than the rows.
    """
    facts = read_facts(path)
    if facts.width != len(query):
        raise InputError(
            f"the query has {len(query)} features, and the rows of {path} have {facts.width}"
        )
    index = None if exact or facts.rows < LARGE else _index_of(path, facts)
    if index is None:
        return nearest_exactly(path, query, top)
    found = index.search(unit(query), min(top, len(index)))
    similar = dict(zip(found.keys.tolist(), (1 - found.distances).tolist(), strict=True))
    return _named(path, similar)


def nearest_exactly(path: Path, query: Floats, top: int) -> list[Neighbor]:
    """As `nearest`, block by block: memory does not grow with the file."""
    target, first = unit(query), 0
    best: list[Neighbor] = []
    for block in embedding_blocks(path):
        similar = np.nan_to_num(unit(block.features) @ target, nan=-np.inf)  # (N,)
        if len(similar) > top:
            chosen = np.sort(np.argpartition(-similar, top - 1)[:top])
            # all rows as similar as the last of them, so that ties are broken by their order
            chosen = np.flatnonzero(similar >= similar[chosen].min())
        else:
            chosen = np.arange(len(similar))
        best += [
            _neighbor(block, i, first + i, float(similar[i]))
            for i in chosen.tolist()
            if np.isfinite(similar[i])
        ]
        best = sorted(best, key=lambda each: (-each.similarity, each.row))[:top]
        first += len(block)
    return best


def _neighbor(block: Embeddings, at: int, row: int, similarity: float) -> Neighbor:
    content = block.contents[at] if block.contents else ""
    return Neighbor(row, block.names[at], min(1.0, similarity), content)


def _named(path: Path, similar: dict[int, float]) -> list[Neighbor]:
    """Rows with their names, best first."""
    found, first = list[Neighbor](), 0
    for block in embedding_blocks(path, vectors=False):
        inside = [row for row in similar if first <= row < first + len(block)]
        found += [_neighbor(block, row - first, row, similar[row]) for row in inside]
        first += len(block)
    return sorted(found, key=lambda each: (-each.similarity, each.row))


def _index_of(path: Path, facts: Facts) -> Any:
    """The index of a large file, or None where usearch is missing."""
    try:
        from usearch.index import Index
    except ImportError:
        log.warning(
            "%d rows are compared one by one; faster with usearch (headstart[search])", facts.rows
        )
        return None
    status = path.stat()
    words = f"{path.resolve()} {status.st_size} {status.st_mtime_ns} {facts}"
    file = cache_folder() / "indexes" / f"{hashlib.sha256(words.encode()).hexdigest()[:32]}.usearch"
    index = Index(ndim=facts.width, metric="cos", dtype="f32")
    if file.is_file():
        index.load(str(file))
        return index
    log.warning("an index of %d rows is made, once", facts.rows)
    first = 0
    for block in embedding_blocks(path):
        there = np.flatnonzero(~np.isnan(block.features).any(1))
        index.add(first + there, unit(block.features[there]))
        first += len(block)
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part")
    index.save(str(part))
    part.replace(file)
    return index


def duplicates(table: Embeddings, threshold: float) -> list[Duplicates]:
    """Groups of rows that are almost the same: each row belongs to the first row before it that
    leads a group and is at least as similar as the threshold.

    Args:
        table: The embeddings.
        threshold: Smallest cosine similarity to the first row of a group.

    Returns:
        Groups of two rows or more, in the order of their first rows.
    """
    x = unit(table.features)
    leaders: list[int] = []
    groups: dict[int, list[Neighbor]] = {}
    for start in range(0, len(x), BLOCK):
        block = x[start : start + BLOCK]
        # (B, leaders so far); rows without a vector are similar to none
        near = np.nan_to_num(block @ x[:start].T, nan=-1.0)[:, leaders] >= threshold
        inside = np.nan_to_num(block @ block.T, nan=-1.0)  # (B, B)
        fresh: list[int] = []
        for i in range(len(block)):
            row = start + i
            if np.isnan(block[i]).any():
                continue
            old = np.flatnonzero(near[i])
            new = [j for j in fresh if inside[i, j] >= threshold]
            if not len(old) and not new:
                fresh.append(i)
                continue
            leader = leaders[int(old[0])] if len(old) else start + new[0]
            similarity = float(x[row] @ x[leader])
            groups.setdefault(leader, []).append(_neighbor(table, row, row, similarity))
        leaders += [start + j for j in fresh]
    return [
        Duplicates(_neighbor(table, first, first, 1.0), others)
        for first, others in sorted(groups.items())
    ]
