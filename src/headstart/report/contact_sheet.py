"""A self-contained page of images and texts that a search found."""

from collections.abc import Sequence
from pathlib import Path

from headstart.checkpoint import atomic_write
from headstart.errors import InputError
from headstart.features.search import Duplicates, Neighbor
from headstart.images.decode import load_image
from headstart.report.page import GalleryImage, Section, Table, image_source, render

SHOWN = 200  # images of one page
SIDE = 240  # pixels of the longer side


def search_sheet(
    path: Path, query: str, found: Sequence[Neighbor], source: Path, image: Path | None = None
) -> int:
    """Writes the page of a search.

    Args:
        path: The HTML file.
        query: What was searched for.
        found: The neighbors, best first.
        source: The file of embeddings; paths that are not found here are looked for beside it.
        image: The image that was searched for.

    Returns:
        How many images could not be shown.
    """
    sections = []
    if image is not None:
        sections.append(Section("Query", images=[_gallery_image(str(image), query, source)]))
    sections.append(_section("Nearest", found, source))
    facts = [f"{len(found)} rows of {source}"]
    if len(found) > SHOWN and not found[0].content:
        facts.append(f"the first {SHOWN} are shown")
    return _write(path, f"Nearest to {query}", facts, sections)


def duplicates_sheet(
    path: Path, groups: Sequence[Duplicates], threshold: float, source: Path
) -> int:
    """Writes the page of near duplicates; see `search_sheet`."""
    sections, shown = list[Section](), 0
    for number, group in enumerate(groups, start=1):
        if shown >= SHOWN:
            break
        shown += 1 + len(group.others)
        sections.append(_section(f"Group {number}", [group.first, *group.others], source))
    rest = len(groups) - len(sections)
    facts = [f"{len(groups)} groups of rows of {source} with a similarity of {threshold:g} or more"]
    if rest:
        facts.append(f"{rest} more groups are not shown")
    return _write(path, "Near duplicates", facts, sections)


def _section(title: str, found: Sequence[Neighbor], source: Path) -> Section:
    if any(each.content for each in found):
        rows = [(each.name, f"{each.similarity:.3f}", each.content) for each in found]
        return Section(title, table=Table(("text", "similarity", "content"), rows))
    captions = [(each.name, f"{each.similarity:.3f}  {each.name}") for each in found[:SHOWN]]
    return Section(
        title, images=[_gallery_image(name, caption, source) for name, caption in captions]
    )


def _gallery_image(name: str, caption: str, source: Path) -> GalleryImage:
    """A small image; one that is not here (a member of a tar, a moved file) has only a caption."""
    places = (Path(name), source.parent / name)
    try:
        place = next((each for each in places if each.is_file()), None)
        return GalleryImage("" if place is None else image_source(load_image(place), SIDE), caption)
    except (InputError, OSError):
        return GalleryImage("", caption)


def _write(path: Path, title: str, facts: list[str], sections: list[Section]) -> int:
    every = [each for section in sections for each in section.images]
    missing = sum(not each.source for each in every)
    if missing:
        facts = [*facts, f"{missing} images cannot be opened here and are not shown"]
    path.parent.mkdir(parents=True, exist_ok=True)
    page = render(title=title, found=facts, sections=sections)
    atomic_write(path, page.encode())
    return missing
