"""`metrics.jsonl`: written during training, read for the report."""

import contextlib
import json
import os
import time
from pathlib import Path
from typing import Any

from headstart.checkpoint import atomic_write
from headstart.checkpoint.documents import MAX_TEXT, decode_text, is_kind, parse_json, read_bytes
from headstart.errors import FileFormatError, MissingExtraError


class MetricsLog:
    """`metrics.jsonl`: one JSON object a line, with the step it belongs to.

    Args:
        path: The file.
        board: Folder where TensorBoard finds the same numbers; None writes none.
    """

    def __init__(self, path: Path, board: Path | None = None) -> None:
        self.path, self.board = path, board
        self._file: Any = None
        self._board: Any = None
        if board is not None:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                raise MissingExtraError("tensorboard", "tensorboard") from None
            self._writer = SummaryWriter

    def cut(self, step: int) -> None:
        """Drops what was written after a checkpoint of this step, and a last line that was cut off.

        The resumed run writes it again.
        """
        if self.path.exists():
            kept = [
                line
                for line in read_metrics(self.path)
                if line["step"] < step + ("validation" not in line)
            ]
            atomic_write(self.path, "".join(json.dumps(line) + "\n" for line in kept))

    def write(self, values: dict[str, Any]) -> None:
        """Adds a line."""
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a", encoding="utf-8")
        self._file.write(json.dumps(values) + "\n")
        if self.board is None:
            return
        if self._board is None:  # what a resumed run writes again takes the place of what is there
            wait_for_a_second_of_its_own(self.board)
            self._board = self._writer(
                str(self.board), purge_step=values["step"] + ("validation" in values)
            )
        split, scalars = (
            ("validation", values["validation"]) if "validation" in values else ("train", values)
        )
        for name, value in scalars.items():
            if name != "step":
                self._board.add_scalar(f"{split}/{name}", value, values["step"])

    def flush(self) -> None:
        """Makes sure that the disk has what was written."""
        for each in (self._file, self._board):
            if each is not None:
                each.flush()
        if self._file is not None:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Closes the files."""
        for each in (self._file, self._board):
            if each is not None:
                each.close()
        self._file = self._board = None


def wait_for_a_second_of_its_own(board: Path) -> None:
    """Waits until TensorBoard's folder has no file of the present second.

    TensorBoard reads files in the order of their names: a second, then a counter as text, of which
    "10" comes before "9". What it reads too late it takes for the remains of a run before.
    """
    while any(board.glob(f"events.out.tfevents.{int(time.time()):010d}.*")):
        time.sleep(0.05)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a metrics file."""
    lines = []
    for number, line in enumerate(read_bytes(path, MAX_TEXT).splitlines(), start=1):
        where = f"{path} line {number}"
        with contextlib.suppress(FileFormatError):  # the last line of a killed run
            found = parse_json(decode_text(line, where), where, nan=True)
            if is_kind(found, dict[str, Any]) and _is_line(found):
                lines.append(found)
    return lines


def _is_line(values: dict[str, Any]) -> bool:
    """Whether values are what `MetricsLog` writes: a step, numbers, and those of a validation."""
    numbers = {name: value for name, value in values.items() if name != "validation"}
    held_out = values.get("validation", {})
    return is_kind(values.get("step"), int) and all(
        is_kind(each, dict[str, float]) for each in (numbers, held_out)
    )
