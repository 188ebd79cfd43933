"""How far the outputs of an engine are from the network's own."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from headstart.errors import ConfigError

# Outputs whose largest entry along the last axis (for maps of classes along the second) is an
# answer.
ANSWERS = ("logits", "start_logits", "end_logits")

# fraction of top-1 answers that must stay, where outputs are scores and precision is given up
AGREEMENT = 0.99


@dataclass(frozen=True)
class Deviation:
    """Differences between two lists of outputs.

    Args:
        largest: Largest difference, as a fraction of the largest output (or of 1, if that is more).
        mean: Mean difference, as a fraction of the same.
        agreement: Fraction of answers (top-1 classes) that are the same; None where the outputs are
            no scores.
        answers: How many were compared.
        expected: The same where the errors are also taken the other way round, which scatters less.
    """

    largest: float
    mean: float
    agreement: float | None
    answers: int
    expected: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON keeps it."""
        return asdict(self)


def top_classes(name: str, scores: Tensor) -> Tensor | None:
    """The classes that scores name, flat; None where they are not scores of several classes."""
    if name not in ANSWERS or scores.ndim < 2:
        return None
    axis = 1 if scores.ndim == 4 else -1
    return None if scores.shape[axis] < 2 else scores.argmax(axis).flatten()


def compare(
    wanted: Sequence[Mapping[str, Tensor]], found: Sequence[Mapping[str, Tensor]]
) -> Deviation:
    """Deviation of one list of outputs (a mapping of names for each call) from another."""
    largest, mean, same, mirrored, answers = 0.0, 0.0, 0, 0, 0
    for name in wanted[0]:
        pairs = [(a[name].float(), b[name].float()) for a, b in zip(wanted, found, strict=True)]
        scale = max(1.0, *(float(a.abs().max()) for a, _ in pairs if a.numel()))
        gaps = torch.cat([(a - b).abs().flatten() for a, b in pairs])
        if not torch.isfinite(gaps).all():
            return Deviation(float("inf"), float("inf"), 0.0, 0)
        largest, mean = (
            max(largest, float(gaps.max()) / scale),
            max(mean, float(gaps.mean()) / scale),
        )
        for a, b in pairs:
            tops = top_classes(name, a), top_classes(name, b)
            if tops[0] is not None and tops[1] is not None:
                same, answers = same + int((tops[0] == tops[1]).sum()), answers + tops[0].numel()
                mirrored += int(torch.eq(tops[0], cast(Tensor, top_classes(name, 2 * a - b))).sum())
    if not answers:
        return Deviation(largest, mean, None, 0)
    return Deviation(largest, mean, same / answers, answers, (same + mirrored) / (2 * answers))


def check_tolerance(tolerance: float) -> None:
    """Refuses a tolerance that is not a number from 0 on.

    Raises:
        ConfigError: It is negative or NaN.
    """
    if not tolerance >= 0:
        raise ConfigError(f"tolerance={tolerance}; expected a number from 0 on, such as 0.0001")


def check_deviation(found: Deviation, path: Path, tolerance: float) -> None:
    """Refuses a written file that differs too much.

    Raises:
        ConfigError: It differs by more than the tolerance, or its outputs are not finite.
    """
    if not found.largest <= tolerance:
        raise ConfigError(
            f"{path.name} differs from PyTorch by {found.largest:.1e}, above the tolerance of"
            f" {tolerance:.1e}; it was not kept"
        )


def enough(deviation: Deviation, fraction: float) -> bool:
    """Whether a fraction of the answers stays.

    With errors of either sign, and not fewer in the count than chance explains.
    """
    if deviation.agreement is None or deviation.expected is None:
        return True
    # two standard deviations of a count
    chance = 2 * math.sqrt(fraction * (1 - fraction) / max(1, deviation.answers))
    return deviation.expected >= fraction and deviation.agreement >= fraction - chance
