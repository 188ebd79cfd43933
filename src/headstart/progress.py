"""What a person sees while a run goes on: a bar on a terminal, plain lines elsewhere.

The bar is rich's. Elsewhere rich prints a task only when it has ended, and in a notebook it needs
ipywidgets; `Lines` and `Notebook` report during the run and need nothing.
"""

import copy
import re
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from html import escape
from typing import Any, Self, TextIO

# all control characters but line breaks and tabs, and those that turn the direction of text around
_CODES = r"\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069"
CONTROLS = re.compile(f"[{_CODES}]")
CONTROLS_AND_SURROGATES = re.compile(rf"[{_CODES}\ud800-\udfff]")
PACE = 900.0  # seconds whose steps tell the time left, of the last 1,000 steps
SHORT = 1.0  # seconds of counted work that nobody needs to see
TITLES = {
    "r2": "R²",
    "mae": "MAE",
    "rmse": "RMSE",
    "mcc": "MCC",
    "f1": "F1",
    "macro_f1": "macro F1",
    "micro_f1": "micro F1",
    "mean_iou": "mean IoU",
}


class Progress(ABC):
    """Shows the steps of a piece of work, of training or anything else."""

    @abstractmethod
    def start(self, label: str, total: int, done: int = 0, unit: str = "img") -> None:
        """A piece of work of `total` steps begins, `done` of which are already done."""

    @abstractmethod
    def update(self, done: int, values: dict[str, float], rate: float | None = None) -> None:
        """So many steps are done. `rate` is in units a second."""

    @abstractmethod
    def report(self, text: str) -> None:
        """A line that stays on the screen."""

    @abstractmethod
    def close(self) -> None:
        """The work has ended, with or without success."""

    @contextmanager
    def counting(
        self, label: str, total: int, unit: str = "img"
    ) -> Iterator[Callable[[int], None]]:
        """Shows a piece of work inside the block, beside what is shown already.

        Args:
            label: What is done.
            total: Number of steps.
            unit: What the steps are, in rates.

        Yields:
            A function that takes how many more steps are done.
        """
        inner, done, began = self.inner(), 0, time.monotonic()

        def add(count: int) -> None:
            nonlocal done
            done += count
            elapsed = time.monotonic() - began
            if elapsed > SHORT:
                inner.update(done, {}, done / elapsed)

        inner.start(label, total, unit=unit)
        try:
            yield add
            if 0 < done < total:  # fewer steps were enough: no line stays at "14/50"
                add(total - done)
        finally:
            inner.remove()

    def inner(self) -> Self:
        """Shows another piece of work in the same place."""
        return copy.copy(self)

    def remove(self) -> None:  # noqa: B027 - lines stay
        """Takes the last piece of work off the screen."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Silent(Progress):
    """Shows nothing."""

    def start(self, label: str, total: int, done: int = 0, unit: str = "img") -> None:
        """See `Progress.start`."""

    def update(self, done: int, values: dict[str, float], rate: float | None = None) -> None:
        """See `Progress.update`."""

    def report(self, text: str) -> None:
        """See `Progress.report`."""

    def close(self) -> None:
        """See `Progress.close`."""


class Lines(Progress):
    """Plain lines, at most one every few seconds and about one for each twentieth of the work."""

    def __init__(self, out: TextIO | None = None, every: float = 10.0) -> None:
        self.out, self.every = out, every
        self.label, self.total, self.unit, self.first = "", 1, "img", 0
        self.began = self.last = time.monotonic()

    def start(self, label: str, total: int, done: int = 0, unit: str = "img") -> None:
        """See `Progress.start`."""
        self.label, self.total, self.unit, self.first = label, total, unit, done
        self.began = self.last = time.monotonic()

    def update(self, done: int, values: dict[str, float], rate: float | None = None) -> None:
        """See `Progress.update`."""
        now = time.monotonic()
        if now - self.last < self.every and done < self.total:
            return
        self.last = now
        left = (now - self.began) / max(1, done - self.first) * (self.total - done)
        speed = f"  {rate:.0f} {self.unit}/s" if rate and rate >= 0.5 else ""
        self.report(
            f"{self.label} {done}/{self.total}  {value_text(values)}{speed}  {duration(left)} left"
        )

    def report(self, text: str) -> None:
        """See `Progress.report`."""
        write_line(plain(text), self.out or sys.stderr)

    def close(self) -> None:
        """See `Progress.close`."""


class Bar(Progress):
    """A rich progress bar with rate and time left.

    `rich` leaves colors out where NO_COLOR is set.
    """

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            SpinnerColumn,
            TextColumn,
            TimeRemainingColumn,
        )

        self.console = Console(stderr=True)
        self.bar: Any = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[values]}"),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=self.console,
            speed_estimate_period=PACE,
        )
        self.job: Any = None
        self.unit = "img"

    def start(self, label: str, total: int, done: int = 0, unit: str = "img") -> None:
        """See `Progress.start`."""
        if self.job is not None:
            self.bar.remove_task(self.job)
        self.unit = unit
        self.bar.start()
        self.job = self.bar.add_task(label, total=total, completed=done, values="", rate="")

    def update(self, done: int, values: dict[str, float], rate: float | None = None) -> None:
        """See `Progress.update`."""
        speed = f"{rate:.0f} {self.unit}/s" if rate and rate >= 0.5 else ""
        self.bar.update(self.job, completed=done, values=value_text(values), rate=speed)

    def report(self, text: str) -> None:
        """See `Progress.report`."""
        self.console.print(plain(text), markup=False, highlight=False, soft_wrap=True)

    def inner(self) -> Self:
        """See `Progress.inner`: a second bar below the first."""
        other = super().inner()
        other.job = None
        return other

    def remove(self) -> None:
        """See `Progress.remove`."""
        self.bar.remove_task(self.job)
        self.job = None
        if not self.bar.tasks:
            self.bar.stop()

    def close(self) -> None:
        """See `Progress.close`."""
        self.bar.stop()
        if self.job is not None:  # its last line stays on the screen
            self.bar.remove_task(self.job)
            self.job = None


class Notebook(Progress):
    """A bar below the cell of a notebook, and the lines above it; needs no widgets."""

    def __init__(self) -> None:
        from IPython.display import HTML, display

        self.show = HTML
        self.place: Any = display(HTML(""), display_id=True)
        self.lines: list[str] = []
        self.label, self.total, self.unit = "", 1, "img"
        self.last = 0.0

    def start(self, label: str, total: int, done: int = 0, unit: str = "img") -> None:
        """See `Progress.start`."""
        self.label, self.total, self.unit, self.last = label, total, unit, 0.0
        self.update(done, {})

    def update(self, done: int, values: dict[str, float], rate: float | None = None) -> None:
        """See `Progress.update`."""
        now = time.monotonic()
        if now - self.last < 0.2 and done < self.total:
            return
        self.last = now
        speed = f"  {rate:.0f} {self.unit}/s" if rate and rate >= 0.5 else ""
        text = f"{self.label} {done}/{self.total}  {value_text(values)}{speed}"
        self._render(f'<progress value="{done}" max="{self.total}"></progress> {escape(text)}')

    def report(self, text: str) -> None:
        """See `Progress.report`."""
        self.lines.append(escape(plain(text)))
        self._render("")

    def remove(self) -> None:
        """See `Progress.remove`."""
        self._render("")

    def close(self) -> None:
        """See `Progress.close`."""
        self._render("")

    def _render(self, bar: str) -> None:
        lines = "\n".join(self.lines)
        self.place.update(self.show(f"<pre>{lines}</pre>{bar}"))


def progress_for_python() -> Progress:
    """A bar in a notebook; nothing elsewhere."""
    return Notebook() if "ipykernel" in sys.modules else Silent()


def progress_for_terminal() -> Progress:
    """A bar where the error stream is a terminal and `rich` is installed, lines elsewhere."""
    if sys.stderr.isatty():
        try:
            return Bar()
        except ImportError:
            return Lines()
    return Lines()


def value_text(values: dict[str, float]) -> str:
    """Values as the bar shows them: fractions as percentages, losses with three digits."""
    shown = (
        f"{name} {value:.1%}" if is_fraction(name) else f"{name} {value:.3f}"
        for name, value in values.items()
    )
    return "  ".join(shown)


def is_fraction(name: str) -> bool:
    """Whether a metric is a fraction between 0 and 1 that people read as a percentage."""
    return any(part in name for part in ("accuracy", "f1", "iou", "exact", "precision", "recall"))


def metric_text(name: str, value: float) -> str:
    """A metric as people read it."""
    return f"{value:.1%}" if is_fraction(name) or name.endswith("_error") else f"{value:.4g}"


def metric_title(name: str) -> str:
    """The name of a metric as people write it."""
    return TITLES.get(name, name.replace("_", " "))


def plain(text: str, *, keep_bytes: bool = False) -> str:
    """A text without control characters, which could change a terminal, a page or a table.

    Names of files and classes come from outside. Line breaks and tabs stay.

    Args:
        text: The text.
        keep_bytes: Keep surrogates, which stand for the bytes of a name that is not UTF-8.
    """
    return (CONTROLS if keep_bytes else CONTROLS_AND_SURROGATES).sub("", text)


def write_line(text: str, out: TextIO) -> None:
    """Writes a line in one call, which lines of other processes on the same stream cannot split.

    `print` writes the line break by a second call, and torchrun starts Python without buffers.
    """
    out.write(f"{text}\n")
    out.flush()


def duration(seconds: float) -> str:
    """A time as people write it: 8s, 3m 20s, 2h 05m."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02d}s"
    return f"{whole // 3600}h {whole % 3600 // 60:02d}m"
