"""What the commands print: tables, warnings."""

import gc
import logging
import sys
import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from headstart.errors import MAX_MESSAGE, cut
from headstart.progress import plain, write_line

# names of files and classes come from outside: a break would make two rows of one
BREAKS = str.maketrans("\n\t", "  ")
PATIENCE = 0.5  # seconds after which rows of a table are shown
LONGEST_NAME = 45  # characters of a first column that is never folded


@contextmanager
def plain_warnings() -> Iterator[None]:
    """Warnings of this and other libraries as plain lines, without the line of code that they come
    from.
    """
    logger = logging.getLogger("headstart")
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(PlainFormatter())
        # a new head is what tuning is for
        handler.addFilter(lambda record: "randomly initialized" not in record.getMessage())
        logger.addHandler(handler)
        logger.propagate = False
    # it says so where it takes a temporary folder for its fonts, and nobody has to know
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        # Pillow's, about damaged metadata, name no file; what cannot be read is an error that does
        warnings.filterwarnings("ignore", module=r"PIL\.")
        warnings.showwarning = lambda message, *_: print_line(f"headstart: {message}", error=True)
        yield


class PlainFormatter(logging.Formatter):
    """Messages of the log without control characters."""

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter`."""
        return plain(super().format(record))


def print_line(text: str, *, error: bool = False) -> None:
    """A line without control characters on standard output, or on standard error.

    Names of any length come from files; where they make a line too long, its middle is left out.
    """
    shown = "\n".join(cut(line, MAX_MESSAGE) for line in plain(text).split("\n"))
    write_line(shown, sys.stderr if error else sys.stdout)


def load_torch() -> None:
    """Imports PyTorch, which takes a second or more; a terminal shows that meanwhile.

    Cyclic garbage is not collected meanwhile, nor looked for later in what was imported: an import
    makes a million objects that stay, and collecting among them took a twelfth of its time.
    """
    if "torch" in sys.modules:
        return
    from headstart.progress import Silent, progress_for_terminal

    progress = progress_for_terminal() if sys.stderr.isatty() else Silent()
    collects = gc.isenabled()
    gc.disable()
    try:
        with progress.counting("loading PyTorch", 1, "packages"):
            import torch  # noqa: F401 - for its modules alone
    finally:
        gc.freeze()
        if collects:
            gc.enable()


def reading_inputs(files: Iterable[str] | None) -> AbstractContextManager[Any]:
    """Shows on a terminal that inputs are read, but for those that a person may be typing (-)."""
    from headstart.progress import Silent, progress_for_terminal

    progress = Silent() if "-" in (files or ()) else progress_for_terminal()
    return progress.counting("reading inputs", 1, "lists")


def print_table(title: str, head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> None:
    """A table on a terminal, tab-separated lines elsewhere, each as soon as it is known.

    What stands in the cells is data: brackets are not markup, control characters are left out.
    """
    rows = (tuple(plain(cell).translate(BREAKS) for cell in row) for row in rows)
    if not sys.stdout.isatty():
        for row in rows:
            print("\t".join(row), flush=True)
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console, widths = Console(), [0] * len(head)
    for number, cells in enumerate(_in_time(rows)):
        first = number == 0
        table = Table(
            title=Text(title) if title and first else None,
            box=None,
            pad_edge=False,
            show_header=first and any(head),
        )
        for column, name in enumerate(head):
            # a name that is copied from the first column stays whole, if there is room for it
            longest = max((len(row[column]) for row in cells), default=0)
            widths[column] = max(widths[column], min(longest, LONGEST_NAME))
            whole = column == 0 and longest <= LONGEST_NAME
            # later rows stand below the first ones
            least = None if first else widths[column]
            table.add_column(Text(name), overflow="fold", no_wrap=whole, min_width=least)
        for row in cells:
            table.add_row(*map(Text, row))
        console.print(table)


def _in_time(rows: Iterable[tuple[str, ...]]) -> Iterator[list[tuple[str, ...]]]:
    """Rows in parts: what is known is shown after half a second; one part where there are none."""
    part: list[tuple[str, ...]] = []
    began, shown = time.monotonic(), False
    for row in rows:
        part.append(row)
        if time.monotonic() - began > PATIENCE:
            yield part
            part, began, shown = [], time.monotonic(), True
    if part or not shown:
        yield part


@contextmanager
def resumable(path: Path) -> Iterator[None]:
    """Says of a file of rows that was cut off how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        how = f"{path} holds the rows so far; to go on: the same command with --resume"
        print_line(f"headstart: {how}", error=True)
        raise
