"""How a student is taught: the options of a distillation, of images and of texts."""

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, fields
from typing import Any, Self

from headstart.errors import ConfigError

FUNCTION = "<function>"  # what `run.json` holds of a teacher that is a function
SHARED = {"validation", "test", "max_error"}  # options of every task

teacher_function: ContextVar[Callable[..., Any] | None] = ContextVar("teacher", default=None)


class TaskSettings:
    """Base of both: a dataclass among the options of a task."""

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Names of the settings."""
        return tuple(field.name for field in fields(cls))  # type: ignore[arg-type]  # of a dataclass

    @classmethod
    def of(cls, options: dict[str, Any]) -> Self:
        """The settings among the options of a task.

        Raises:
            ConfigError: An option that this kind of distillation does not have, or no teacher.
        """
        known = {field.name for field in fields(cls)}  # type: ignore[arg-type]  # of a dataclass
        others = set(options) - known - SHARED
        if others:
            raise ConfigError(
                f"distillation has no option {sorted(others)[0]!r}; it has"
                f" {', '.join(sorted(known))}"
            )
        values = {name: value for name, value in options.items() if name in known}
        if "teacher" not in values:
            raise ConfigError("which teacher? Give headstart distill TEACHER DATA --student NAME")
        for name in ("teacher_mean", "teacher_std"):
            if values.get(name) is not None:
                values[name] = tuple(float(each) for each in values[name])
        return cls(**values)


def not_negative(settings: Any, *names: str) -> None:
    """Refuses negative weights."""
    for name in names:
        if not getattr(settings, name) >= 0:
            raise ConfigError(f"{name}={getattr(settings, name)}; it must not be negative")


@dataclass(frozen=True)
class Settings(TaskSettings):
    """How a student of images is taught; kept in `run.json` as options of the task.

    Args:
        teacher: Name or path, or `FUNCTION`.
        teacher_size: Side of what the teacher sees; None takes its own, else the student's.
        teacher_mean: Channel means of the teacher's images in 0..1; None takes the teacher's own,
            else the student's.
        teacher_std: Standard deviations likewise.
        temperature: Divides the logits of both before they are compared.
        label_weight: Weight of the labels' cross-entropy; 0 reads no labels.
        feature_weight: Weight of the squared error of the teacher's features, predicted by a linear
            map of the student's.
        scratch: Whether the student's weights are randomly initialized.
    """

    teacher: str
    teacher_size: int | None = None
    teacher_mean: tuple[float, ...] | None = None
    teacher_std: tuple[float, ...] | None = None
    temperature: float = 1.0
    label_weight: float = 0.0
    feature_weight: float = 0.0
    scratch: bool = False

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ConfigError(f"temperature={self.temperature}; it must be above 0")
        not_negative(self, "label_weight", "feature_weight")
        if self.teacher_size is not None and self.teacher_size < 1:
            raise ConfigError(f"teacher_size={self.teacher_size}; it must be at least 1")
        for name in ("teacher_mean", "teacher_std"):
            values = getattr(self, name)
            if values is not None and len(values) != 3:
                raise ConfigError(f"{name}={values}; expected three numbers, one for each channel")
        if self.teacher_std is not None and not min(self.teacher_std) > 0:
            raise ConfigError(f"teacher_std={self.teacher_std}; every number must be above 0")


@dataclass(frozen=True)
class TextSettings(TaskSettings):
    """How a student of texts is taught; kept in `run.json` as options of the task.

    Args:
        teacher: Name or path, or `FUNCTION`.
        vector_weight: Weight of the squared error of the teacher's vector of a text, predicted by a
            linear map of the mean of the student's hidden states.
        hidden_weight: Weight of the squared error of the teacher's hidden states, predicted by a
            linear map of the student's, token by token.
        mask_weight: Weight of the cross-entropy of masked words; 0 masks none.
        scratch: Whether the student's weights are randomly initialized.
    """

    teacher: str
    vector_weight: float = 1.0
    hidden_weight: float = 1.0
    mask_weight: float = 0.1
    scratch: bool = False

    def __post_init__(self) -> None:
        not_negative(self, "vector_weight", "hidden_weight", "mask_weight")
        if not self.vector_weight and not self.hidden_weight:
            raise ConfigError(
                "vector_weight and hidden_weight are 0: nothing would be learned from the teacher"
            )
