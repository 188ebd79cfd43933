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


class HeadstartError(Exception):
    """Anything that headstart raises on purpose."""


class ConfigError(HeadstartError, ValueError):
    """A configuration that cannot describe a working model."""


class WeightsError(HeadstartError, ValueError):
    """Tensors whose names or shapes do not fit the network."""


class FileFormatError(HeadstartError, ValueError):
    """A file that is damaged, unsafe, or of an unknown format."""


class InputError(HeadstartError, ValueError):
    """An argument of a call that cannot be used: an image, a text, a tensor."""


class DataError(HeadstartError, ValueError):
    """A data set that cannot be trained on or evaluated."""


class HubError(HeadstartError, OSError):
    """A name that could not be turned into files."""


class NotFoundError(HubError):
    """No such folder, model, revision or file."""


class AuthError(HubError):
    """The server wants a token, or another one."""


class OfflineError(HubError):
    """Not cached, and the network may not or cannot be used."""


class DownloadError(HubError):
    """A transfer failed; nothing half-written was kept as whole."""


class TrainingInterrupted(HeadstartError, RuntimeError):
    """Training stopped on request; the message says how to go on."""


class ProcessLostError(HeadstartError, RuntimeError):
    """Another process of the same run has ended, so that this one cannot go on."""


class MissingExtraError(HeadstartError, ImportError):
    """An optional dependency is missing.

    One that an extra of ours installs, or (without `extra`) one that the user chooses.
    """

    def __init__(self, package: str, extra: str | None = None, hint: str = "") -> None:
        what = f"'headstart[{extra}]'" if extra else package
        super().__init__(f"{package} is not installed; install it with: pip install {what}{hint}")
