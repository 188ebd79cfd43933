"""Commands that look at data: audit."""

from pathlib import Path
from typing import Annotated

import typer

from headstart.cli.arguments import check_model, named_values
from headstart.cli.options import ColumnOption, DataArgument, WorkersOption
from headstart.cli.output import DATA_ERROR, JsonOption, emit
from headstart.cli.terminal import load_torch, print_line, print_table
from headstart.errors import cut, listed


def audit(
    data: DataArgument,
    as_json: JsonOption = False,
    html: Annotated[
        Path | None, typer.Option(help="Page with the images, such as audit.html.")
    ] = None,
    model: Annotated[
        str, typer.Option(help="Network whose features are used to find label errors and outliers.")
    ] = "bit-mini",
    quick: Annotated[
        bool,
        typer.Option("--quick", help="Skip label errors and outliers, which need the network."),
    ] = False,
    column: ColumnOption = None,
    workers: WorkersOption = None,
) -> None:
    """Check data: unreadable images, duplicates, leaks, bad photos, wrong labels, outliers.

    The exit code is 3 if images are unreadable or duplicated; bad photos, probable label errors and
    outliers are estimates and do not change it.

    Examples: [bold]headstart audit photos/[/bold]

    [bold]headstart audit photos/ --model BiT-M-R50x1 --html audit.html[/bold]
    """
    if not quick:
        check_model(model)
        load_torch()
    from headstart.data.options import DataOptions
    from headstart.progress import progress_for_terminal
    from headstart.report.audit import audit as run
    from headstart.report.audit import write_page

    found = run(
        data,
        DataOptions(
            val_fraction=0.0,
            columns=named_values(column, "--column"),
            workers=workers,
            progress=progress_for_terminal(),
        ),
        None if quick else model,
    )
    if html is not None:
        write_page(found, html, str(data))
    if as_json:
        pairs = [
            vars(pair) | {"leaks": pair.leaks, "contradicts": pair.contradicts}
            for pair in found.pairs
        ]
        values = {"images": found.images, "unreadable": found.unreadable, "pairs": pairs}
        values |= {
            "mislabelled": [vars(each) for each in found.mislabelled],
            "outliers": [vars(each) for each in found.outliers],
        }
        values["agreement"] = found.agreement
        values["bad_photos"] = [vars(each) for each in found.bad_photos]
        emit("audit", values)
    else:
        rows = [("unreadable", name, reason) for name, reason in found.unreadable]
        for pair in found.pairs:
            words = [f"{pair.kind} duplicate"] + ["leak: " + " and ".join(pair.splits)] * pair.leaks
            words += ["classes: " + listed(pair.labels, separator=" and ")] * pair.contradicts
            rows.append((", ".join(words), pair.first, pair.second))
        rows += [(each.kind, each.name, each.reason) for each in found.bad_photos]
        for doubt in found.mislabelled:
            reason = (
                f"is {cut(doubt.label)} ({doubt.probability:.0%}), looks like {cut(doubt.likely)}"
                f" ({doubt.likely_probability:.0%})"
            )
            rows.append(("probably mislabelled", doubt.name, reason))
        rows += [
            (
                "outlier",
                each.name,
                f"{cut(each.label)}, {each.distance:.1f} deviations from the others",
            )
            for each in found.outliers
        ]
        print_table("", ("what", "image", "and"), rows)
        first, *others = found.lines()
        print_line(f"{first}: {', '.join(others)}", error=True)
    if found.unreadable or found.pairs:
        raise typer.Exit(DATA_ERROR)
