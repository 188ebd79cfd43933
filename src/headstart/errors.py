"""Every exception that headstart raises on purpose.

HeadstartError
├── ConfigError          (ValueError)   a configuration that cannot describe a working model
├── WeightsError         (ValueError)   tensors whose names or shapes do not fit the network
├── FileFormatError      (ValueError)   a file that is damaged, unsafe, or of an unknown format
├── InputError           (ValueError)   an argument of a call: an image, a text, a tensor
├── DataError            (ValueError)   a data set that cannot be trained on or evaluated
├── HubError             (OSError)      a name that could not be turned into files
│   ├── NotFoundError                   no such folder, model, revision or file
│   ├── AuthError                       the server wants a (different) token
│   ├── OfflineError                    not cached, and the network may not or cannot be used
│   └── DownloadError                   the transfer failed; nothing half-written was kept as whole
├── ProcessLostError     (RuntimeError) another process of the same run has ended
├── TrainingInterrupted  (RuntimeError) stopped on request; says how to go on
└── MissingExtraError    (ImportError)  an optional dependency; says what to install

Each also inherits the built-in error in brackets, so `except ValueError` keeps working.
"""

from collections.abc import Iterable
from typing import ClassVar

MAX_LINE, MAX_LINES, MAX_MESSAGE = 800, 40, 4_000  # characters and lines


def printable(text: str) -> str:
    """A text from outside as a terminal can show it.

    Control characters become `\\x1b` and the like.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in text)


def counted(number: int, noun: str) -> str:
    """A number with its noun: "1 image", "2 images"."""
    return f"{number} {noun}{'s' * (number != 1)}"


def listed(names: Iterable[object], limit: int = 8, separator: str = ", ") -> str:
    """Names for a message: the first `limit` of them, long ones cut, "and N more"."""
    shown = [cut(str(name)) for name in names]
    more = f" and {len(shown) - limit} more" if len(shown) > limit else ""
    return separator.join(shown[:limit]) + more


def _shortened(message: str) -> str:
    """A message whose lines, and their number, are bounded: begin and end of a line remain."""
    lines = message.split("\n")
    # Cut before escaping, which takes time: a message may quote a file of any size.
    shown = [cut(printable(cut(line))) for line in lines[: MAX_LINES - 1]]
    while sum(map(len, shown)) > MAX_MESSAGE - 100 and len(shown) > 1:
        shown.pop()
    rest = len(lines) - len(shown)
    return "\n".join([*shown, *([f"and {rest} more lines"] if rest else [])])


def cut(line: str, longest: int = MAX_LINE) -> str:
    """A line of at most so many characters: begin and end remain."""
    begin, end = longest * 5 // 8, longest * 3 // 8
    return line if len(line) <= longest else f"{line[:begin]} … {line[-end:]}"


class HeadstartError(Exception):
    """Anything that headstart raises on purpose.

    A message may quote files: what a terminal would obey is escaped, and long lines are cut.

    Attributes:
        code: The cause in one word, for programs.
        exit_code: Of the command line: 2 the call, 3 the data, 4 this machine or the network.
    """

    code: ClassVar[str] = "error"
    exit_code: ClassVar[int] = 2
    _fix: ClassVar[str] = "`headstart COMMAND --help` lists what a command takes"

    @property
    def what(self) -> str:
        """What was wrong: the message up to its first semicolon."""
        return str(self).partition("; ")[0]

    @property
    def fix(self) -> str:
        """What was expected or what to do: the rest of the message, or general advice."""
        return str(self).partition("; ")[2] or self._fix

    def __init__(self, message: str = "") -> None:
        super().__init__(_shortened(str(message)))


class ConfigError(HeadstartError, ValueError):
    """A configuration that cannot describe a working model."""

    code = "config"


class WeightsError(HeadstartError, ValueError):
    """Tensors whose names or shapes do not fit the network."""

    code = "weights"
    exit_code = 3
    _fix = "use the class and the configuration that the checkpoint was made with"


class FileFormatError(HeadstartError, ValueError):
    """A file that is damaged, unsafe, or of an unknown format."""

    code = "file-format"
    exit_code = 3
    _fix = "get the file again, or convert it with the program that made it"


class InputError(HeadstartError, ValueError):
    """An argument of a call that cannot be used: an image, a text, a tensor."""

    code = "input"


class DataError(HeadstartError, ValueError):
    """A data set that cannot be trained on or evaluated."""

    code = "data"
    exit_code = 3
    _fix = "correct the files or rows that the message names; `headstart audit` checks data"


class HubError(HeadstartError, OSError):
    """A name that could not be turned into files."""

    code = "hub"
    exit_code = 4
    _fix = "try again, or give the path of a folder"


class NotFoundError(HubError):
    """No such folder, model, revision or file."""

    code = "not-found"
    exit_code = 2
    _fix = "`headstart models` lists the published models"


class AuthError(HubError):
    """The server wants a token, or another one."""

    code = "auth"
    exit_code = 4
    _fix = "set HF_TOKEN to a token with access"


class OfflineError(HubError):
    """Not cached, and the network may not or cannot be used."""

    code = "offline"
    exit_code = 4
    _fix = "connect to the network, or give the path of a folder"


class DownloadError(HubError):
    """A transfer failed; nothing half-written was kept as whole."""

    code = "download"
    exit_code = 4


class TrainingInterrupted(HeadstartError, RuntimeError):
    """Training stopped on request; the message says how to go on."""

    code = "interrupted"
    exit_code = 130
    _fix = "run the same command with --resume"


class ProcessLostError(HeadstartError, RuntimeError):
    """Another process of the same run has ended, so that this one cannot go on."""

    code = "process-lost"
    exit_code = 4
    _fix = "start all processes again with --resume"


class MissingExtraError(HeadstartError, ImportError):
    """An optional dependency is missing.

    One that an extra of ours installs, or (without `extra`) one that the user chooses.
    """

    code = "missing-extra"
    exit_code = 4

    def __init__(self, package: str, extra: str | None = None, hint: str = "") -> None:
        what = f"'headstart[{extra}]'" if extra else package
        super().__init__(f"{package} is not installed; install it with: pip install {what}{hint}")
