"""Reads damaged files in a process of its own, watched by an audit hook.

`python worker.py FORMAT FIRST COUNT BASE BEFORE`: reads inputs FIRST, FIRST + 1, … of a format, and
writes one line of JSON for each. The number of an input is in the file BEFORE while it is read, so
that the parent knows which one a crash or a hang belongs to.
"""

import json
import logging
import os
import random
import resource
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fuzz.formats import FORMATS, Format, fill
from fuzz.mutate import damaged

MEMORY = 3 << 30  # bytes of address space beyond those that are in use at the start
GROWTH = 1 << 30  # bytes of resident memory that one input may take
SLOW = 5.0  # seconds of processor time
LONG = 4000  # characters of a message
# What no file may cause. Files may be opened for writing below the folder of the input only.
FORBIDDEN = (
    "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork",
    "os.forkpty", "pty.spawn", "socket.connect",
    "socket.bind", "pickle.find_class", "ctypes.dlopen", "os.kill", "os.symlink", "os.link",
    "os.chmod", "os.chown", "shutil.rmtree",
)  # fmt: skip


class Watch:
    """The audit hook: notes forbidden events while an input is read."""

    def __init__(self) -> None:
        self.folder: str | None = None
        self.events: list[str] = []

    def __call__(self, event: str, arguments: tuple) -> None:
        if self.folder is None:
            return
        if event in FORBIDDEN:
            self.events.append(f"{event}{arguments!r:.100}")
        elif event == "open" and isinstance(arguments[0], str | bytes):
            mode, flags = arguments[1] or "", arguments[2] or 0
            writes = set(mode) & set("wax+") or flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            if writes and not os.fsdecode(arguments[0]).startswith(self.folder):
                self.events.append(f"open{arguments!r:.100}")
        elif event == "exec" and getattr(arguments[0], "co_filename", "").startswith("<"):
            name = arguments[0].co_filename
            if "frozen" not in name and not _known(sys._getframe(1)):
                self.events.append(f"exec {name}")


def _known(frame: object) -> bool:
    """Whether code that makes code (dataclasses, named tuples, a lazy import) asks for it."""
    while frame is not None:
        name = frame.f_code.co_filename  # type: ignore[attr-defined]
        if "importlib" in name or name.endswith(("dataclasses.py", "collections/__init__.py")):
            return True
        frame = frame.f_back  # type: ignore[attr-defined]
    return False


def outcome(form: Format, folder: Path, watch: Watch) -> dict[str, object]:
    """What reading the file in a folder comes to."""
    from headstart.errors import HeadstartError

    began, before = time.process_time(), _resident()
    watch.folder, watch.events = str(folder), []
    kind, place, text = "loaded", "", ""
    try:
        form.read(folder)
    except HeadstartError as error:
        kind, text = "clean", str(error)
        if len(text) > LONG or not text.replace("\n", "").replace("\t", "").isprintable():
            kind = "message"
    except MemoryError:
        kind, place = "memory", _place()
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        kind, place, text = "foreign", f"{type(error).__name__} {_place()}", str(error)[:200]
    finally:
        watch.folder = None
    if watch.events:
        kind, text = "event", watch.events[0]
    elif kind in ("loaded", "clean"):
        if time.process_time() - began > SLOW:
            kind = "slow"
        elif _resident() - before > GROWTH:
            kind = "memory"
    return {"kind": kind, "place": place, "text": text[:300]}


def _resident() -> int:
    """Largest resident memory so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _place() -> str:
    """The last line of headstart in the traceback."""
    frames = traceback.extract_tb(sys.exc_info()[2])
    ours = [each for each in frames if "/headstart/" in each.filename] or frames
    return f"{ours[-1].filename.rpartition('/headstart/')[2]}:{ours[-1].lineno}"


def input_of(name: str, number: int, base: Path) -> bytes:
    """Input `number` of a format: the same bytes for the same number and seeds."""
    form, rng = FORMATS[name], random.Random(f"{name}:{number}")
    content = (base / rng.choice(form.seeds)).read_bytes()
    other = (base / rng.choice(form.seeds)).read_bytes()
    return damaged(form.kind, content, other, rng)


def quiet() -> None:
    """No logs and no warnings: a damaged file causes many."""
    logging.disable()
    warnings.simplefilter("ignore")
    os.environ |= {"HF_HUB_OFFLINE": "1", "HEADSTART_CACHE": tempfile.gettempdir()}
    os.environ |= {"OMP_NUM_THREADS": "1", "RUST_BACKTRACE": "0"}


def main(name: str, first: int, count: int, base: Path, before: Path) -> None:
    """Reads `count` inputs of a format, from number `first` on."""
    quiet()
    form, watch = FORMATS[name], Watch()
    results = os.fdopen(os.dup(1), "w")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):  # engines print
        os.dup2(nowhere, stream)
    for seed in form.seeds:  # imports what is imported late, and shows that whole files load
        with tempfile.TemporaryDirectory() as place:
            form.read(fill(Path(place), base, form, (base / seed).read_bytes()))
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.addaudithook(watch)
    for number in range(first, first + count):
        before.write_text(f"{number} {time.time()}")
        with tempfile.TemporaryDirectory() as place:
            fill(Path(place), base, form, input_of(name, number, base))
            found = outcome(form, Path(place), watch)
        print(json.dumps({"number": number, **found}), file=results, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]), Path(sys.argv[5]))
