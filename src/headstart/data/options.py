"""How a data set is read: the options that every reader of this package takes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from headstart.errors import ConfigError, DataError
from headstart.progress import Progress, Silent

if TYPE_CHECKING:
    import numpy as np

SPLITS = ("train", "validation", "test")
LOOK = 5000  # images that are opened before training starts, where there are many
# What columns of a table may be to labelled images, and to labelled texts.
IMAGE_ROLES = ("image", "label", "labels", "score", "split", "group")
TEXT_ROLES = ("text", "pair", "label", "labels", "score", "split", "group")
MANY = 10  # times as many: data sets up to there are opened whole


@dataclass(frozen=True)
class DataOptions:
    """How a data set is read.

    Args:
        seed: Decides the split and the choice of `shots`.
        shots: Training examples taken of each class; None takes all.
        draw: Which of many choices of the `shots`, from 0.
        val_fraction: Fraction of the training data held out where the data has no validation split
            of its own.
        skip_bad: Leave out unreadable examples instead of stopping.
        columns: Column of a table by role, for example {"image": "file", "label": "species"}; roles
            left out are found by name.
        classes: Class names in the order of an existing model, for evaluating it.
        target: What an image comes with: a "label", a "mask", or nothing ("none"); the task
            decides.
        problem_type: What the labels are ("single_label_classification",
            "multi_label_classification", "regression"); None looks at them.
        fewest_classes: Classes below which data is refused.
        workers: Threads that read and decode; None is one for each processor, at most 8.
        extra: Further options of one task, by name.
        progress: Shows what is read.
    """

    seed: int = 0
    shots: int | None = None
    draw: int = 0
    val_fraction: float = 0.2
    skip_bad: bool = False
    columns: dict[str, str] = field(default_factory=dict)
    classes: list[str] | None = None
    target: Literal["label", "mask", "none"] = "label"
    problem_type: str | None = None
    fewest_classes: int = 2
    workers: int | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    progress: Progress = field(default_factory=Silent, repr=False, compare=False)

    def shot_generator(self) -> "np.random.Generator":
        """Decides which `shots` are taken; what is held out does not depend on the draw."""
        import numpy as np

        return np.random.default_rng([self.seed, 0x540, *([self.draw] if self.draw else [])])


def check_roles(columns: Mapping[str, str], roles: Sequence[str], what: str) -> None:
    """Refuses roles of columns that nothing reads.

    Args:
        columns: Columns by role.
        roles: Those that are read.
        what: Who reads them.

    Raises:
        ConfigError: Names one, and those that there are.
    """
    for role, column in columns.items():
        if role not in roles:
            raise ConfigError(
                f"--column {role}={column}: {what} has no role {role!r}; its roles:"
                f" {', '.join(roles)}"
            )


def refuse_columns(columns: Mapping[str, str], path: object, what: str) -> None:
    """Refuses columns that were given for data without any.

    Args:
        columns: Columns by role.
        path: The data, as it is named to the user.
        what: What is there in place of columns.

    Raises:
        DataError: There are columns.
    """
    for role, column in columns.items():
        raise DataError(
            f"--column {role}={column}: {path} holds {what} and no columns; leave it out"
        )
