"""What was tried and measured when a model was optimized."""

from dataclasses import asdict, dataclass, field
from typing import Any

from headstart.checkpoint.documents import as_dataclass, value_of
from headstart.engine.deviation import Deviation
from headstart.errors import FileFormatError

OLD = {"asked": "requested", "int8_share": "int8_fraction"}  # key of an older report → ours


@dataclass
class Trial:
    """One engine in one precision.

    Args:
        engine: Its name.
        precision: What it computes in.
        deviation: How far its outputs are from the network's.
        ms: Median milliseconds of a call with the example; None where it was not timed.
        build_seconds: How long making it ready took.
        memory_mb: Megabytes that the process grew by, exporting included.
        refused: Why it was not taken, or None.
        streams: Images or texts that run side by side, each on a fraction of the threads.
        int8_fraction: Fraction of the multiplications by weights that is in int8, where that is
            known; the rest is in float32.
    """

    engine: str
    precision: str
    deviation: Deviation | None = None
    ms: float | None = None
    build_seconds: float = 0.0
    memory_mb: float = 0.0
    refused: str | None = None
    streams: int = 1
    int8_fraction: float | None = None

    def describe(self) -> str:
        """One line."""
        parts = [
            f"{self.engine} {self.precision}"
            + (f" in {self.streams} streams" if self.streams > 1 else "")
        ]
        if self.int8_fraction is not None:
            parts.append(f"{self.int8_fraction:.0%} of the products in int8")
        if self.ms is not None:
            parts.append(f"{self.ms:.1f} ms")
        if self.deviation is not None:
            parts.append(
                f"largest deviation {self.deviation.largest:.1e}, mean {self.deviation.mean:.1e}"
            )
            if self.deviation.agreement is not None:
                parts.append(
                    f"{self.deviation.agreement:.1%} of {self.deviation.answers} answers the same"
                )
        if self.refused:
            parts.append(f"refused: {self.refused}")
        return ", ".join(parts)


@dataclass
class Report:
    """What was measured; `str(report)` is a few readable lines.

    Args:
        model: Class of the network.
        chosen: The engine that was taken.
        original_ms: Median milliseconds of the network in PyTorch, in the same run.
        batch: Images or texts of a call that was timed.
        threads: Threads of the engine.
        requested: Requested precision; `chosen.precision` is higher where that was not close
            enough.
        trials: Everything that was tried.
        callers: How many called at once; milliseconds are then the time of all, divided by them.
        original_threads: Threads of PyTorch in `original_ms`: those of the engine or one, whichever
            was faster.
    """

    model: str
    chosen: Trial
    original_ms: float
    batch: int
    threads: int
    requested: str
    trials: list[Trial] = field(default_factory=list)
    callers: int = 1
    original_threads: int | None = None

    @property
    def speedup(self) -> float:
        """Speed-up over the network in PyTorch."""
        return self.original_ms / self.chosen.ms if self.chosen.ms else 1.0

    def __str__(self) -> str:
        ms = self.chosen.ms or self.original_ms
        alone = ", 1 thread, which was faster" if self.original_threads == 1 < self.threads else ""
        lines = [
            f"{self.model} on {self.threads} thread{'s' * (self.threads > 1)}, batch {self.batch}"
            + (f", {self.callers} callers at once" if self.callers > 1 else ""),
            (
                f"before: {self.original_ms:.1f} ms, {1e3 * self.batch / self.original_ms:.1f} a"
                f" second (PyTorch, float32{alone})"
            ),
            (
                f"after:  {ms:.1f} ms, {1e3 * self.batch / ms:.1f} a second, a speed-up of"
                f" {self.speedup:.2f}, {self.chosen.memory_mb:.0f} MB"
            ),
            f"taken:  {self.chosen.describe()}",
        ]
        if self.chosen.precision != self.requested:
            lines.append(f"{self.requested} was requested, and no engine was close enough in it")
        return "\n".join(
            lines + [f"tried:  {trial.describe()}" for trial in self.trials if trial != self.chosen]
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self) | {"speedup": self.speedup}

    @classmethod
    def from_dict(cls, values: object, where: object = "report") -> "Report":
        """The inverse of `to_dict`.

        Raises:
            FileFormatError: Values that no report has.
        """
        trials = [_trial(each, where) for each in value_of(values, "trials", list[Any], where)]
        chosen = _trial(value_of(values, "chosen", dict[str, Any], where), where)
        plain = {OLD.get(key, key): each for key, each in dict(values).items() if key != "speedup"}  # type: ignore[call-overload]  # a mapping, as value_of checked
        report: Report = as_dataclass(cls, plain, where, chosen=chosen, trials=trials)
        for name, value in (("original_ms", report.original_ms), ("batch", report.batch)):
            if value <= 0:
                raise FileFormatError(f"{where}: {name} is {value}; expected a number above 0")
        return report


def _trial(values: object, where: object) -> Trial:
    found = value_of(values, "deviation", dict[str, Any] | None, where)
    deviation = None if found is None else as_dataclass(Deviation, found, where)
    plain = {OLD.get(key, key): each for key, each in dict(values).items()}  # type: ignore[call-overload]  # as above
    return as_dataclass(Trial, plain, where, deviation=deviation)
