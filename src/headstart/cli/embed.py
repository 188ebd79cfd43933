"""Commands on vectors of images and texts: embed, search."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headstart.cli import cluster
from headstart.cli.arguments import check_model
from headstart.cli.cluster import Cluster, Inputs
from headstart.cli.options import (
    ActorsOption,
    BatchOption,
    DeviceOption,
    InputsArgument,
    LinesOption,
    LongOption,
    ModelArgument,
    RayOption,
    WorkersOption,
)
from headstart.cli.output import DATA_ERROR, JsonOption, emit
from headstart.cli.terminal import load_torch, print_line, print_table, reading_inputs, resumable
from headstart.errors import ConfigError

if TYPE_CHECKING:
    from headstart.features.search import Neighbor

SHOWN = 120  # characters of a text in a line


def embed(
    model: ModelArgument,
    files: InputsArgument = None,
    *,
    out: Annotated[str, typer.Option(metavar="PATH", help="File to write: .parquet or .npz.")],
    text: Annotated[list[str] | None, typer.Option(help="A text; may be repeated.")] = None,
    lines: LinesOption = False,
    long: LongOption = "refuse",
    batch_size: BatchOption = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the file of a run that was cut off.")
    ] = False,
    device: DeviceOption = None,
    workers: WorkersOption = None,
    ray: RayOption = None,
    actors: ActorsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write the vector that a model gives each image or text, to search or classify with.

    Unreadable images are named and have an empty row; the exit code is then 3.

    Example: [bold]headstart embed bit-mini photos/ --out features.parquet[/bold]
    """
    check_model(model)
    load_torch()
    from headstart.features.embed import Embedder, inputs_for, write_embeddings
    from headstart.progress import progress_for_terminal
    from headstart.training.world import best_device

    if ray is not None:
        options = {
            "model": model,
            "batch_size": batch_size,
            "long": long,
            "device": device,
            "workers": workers,
        }
        chosen = Inputs(files or [], text or [], None, lines)
        cluster.embed(options, chosen, out, as_json, Cluster(ray, actors, resume))
        return
    cluster.check_absent(files, out, actors)
    embedder = Embedder(model, best_device(device), long)
    with reading_inputs(files):
        inputs = inputs_for(embedder, files or [], text or [], lines)
    with resumable(Path(out)), progress_for_terminal() as progress:
        lost = write_embeddings(
            embedder,
            inputs,
            Path(out),
            batch_size=batch_size,
            workers=workers,
            resume=resume,
            progress=progress,
        )
    note = f", {lost} without a vector" if lost else ""
    if as_json:
        values = {"out": str(out), "rows": len(inputs), "width": embedder.width}
        emit("embed", values | {"key": embedder.key, "errors": lost})
    else:
        print_line(f"{out}: {len(inputs)} rows of {embedder.width} features{note}")
    if lost:
        raise typer.Exit(DATA_ERROR)


def search(
    query: Annotated[
        str | None,
        typer.Argument(help="Image, text, or the number of a row of --in (the first is 0)."),
    ] = None,
    *,
    source: Annotated[Path, typer.Option("--in", help="What `headstart embed` wrote.")],
    top: Annotated[int, typer.Option(min=1, help="Rows to print.")] = 10,
    duplicates: Annotated[
        bool, typer.Option("--duplicates", help="Print groups of near duplicates; no query.")
    ] = False,
    threshold: Annotated[
        float,
        typer.Option(
            min=-1.0, max=1.0, help="With --duplicates: smallest cosine similarity in a group."
        ),
    ] = 0.95,
    html: Annotated[
        Path | None, typer.Option(help="Also write a page with the images found.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="Model of the query, if it was moved; default the one that --in names."),
    ] = None,
    exact: Annotated[
        bool,
        typer.Option("--exact", help="Compare all rows, where above 100,000 an index is used."),
    ] = False,
    as_json: JsonOption = False,
    device: DeviceOption = None,
) -> None:
    """Find the images or texts that are most similar to one, or near duplicates.

    Example: [bold]headstart search bee.jpg --in features.parquet --html found.html[/bold]
    """
    if duplicates == (query is not None):
        raise ConfigError("search takes a query, or --duplicates without one")
    if duplicates:
        _print_duplicates(source, threshold, html, as_json)
        return
    from headstart.features.search import nearest, query_vector
    from headstart.report.contact_sheet import search_sheet
    from headstart.training.world import best_device

    words = query or ""
    vector, row = query_vector(source, words, model, best_device(device))
    # a row is most similar to itself
    found = nearest(source, vector, top if row is None else top + 1, exact=exact)
    found = [each for each in found if each.row != row][:top]
    for each in found if as_json else ():
        emit("search", _values(each))
    if not as_json:
        print_table("", ("similarity", "row", "name"), map(_line, found))
    if html is not None:
        image = Path(words) if row is None and Path(words).is_file() else None
        search_sheet(html, words if row is None else f"row {row}", found, source, image)
        print_line(f"written: {html}", error=True)


def _print_duplicates(source: Path, threshold: float, html: Path | None, as_json: bool) -> None:
    from headstart.data.embeddings import read_embeddings
    from headstart.features.search import duplicates
    from headstart.report.contact_sheet import duplicates_sheet

    groups = duplicates(read_embeddings(source), threshold)
    for number, group in enumerate(groups, start=1):
        rows = [group.first, *group.others]
        if as_json:
            emit("search", {"group": number, "rows": [_values(each) for each in rows]})
        else:
            print_table("", ("similarity", "row", "name"), map(_line, rows))
            print()
    if html is not None:
        duplicates_sheet(html, groups, threshold, source)
        print_line(f"written: {html}", error=True)


def _values(each: "Neighbor") -> dict[str, Any]:
    """A row that was found as JSON."""
    values = {"row": each.row, "name": each.name, "similarity": round(each.similarity, 6)}
    return values | ({"content": each.content} if each.content else {})


def _line(each: "Neighbor") -> tuple[str, ...]:
    words = each.content if len(each.content) <= SHOWN else f"{each.content[:SHOWN]}…"
    name = f"{each.name}  {' '.join(words.split())}" if words else each.name
    return f"{each.similarity:.3f}", str(each.row), name
