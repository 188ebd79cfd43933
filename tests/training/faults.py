"""Faults of machine and disk during a run, and what a resumed run makes of them.

`python tests/training/faults.py --trials 200` prints a table. A trial is a number: the same number
is the same fault at the same operation on the run's files. Right is that the run, resumed (or begun
again where it says that nothing was begun), ends with the weights, the log and the evaluations of
the run that nothing happened to.

An audit hook counts what a process does to files in the result folder. At a random one of them
- kill: the process ends at once, as by kill -9 or a power failure;
- torn: the same, and the file that was opened last has lost its second half;
- full: that operation and the next forty fail with ENOSPC;
- broken: that operation fails with EIO;
- clock: the wall clock jumps a day ahead or back, from there on.
"""

import argparse
import collections
import errno
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from safetensors.torch import load_file

import headstart
from headstart.errors import HeadstartError

KINDS = ("kill", "torn", "full", "broken", "clock")
OPTIONS: dict[str, Any] = {
    "steps": 8,
    "lr": 0.05,
    "resize": 24,
    "crop": 20,
    "batch_size": 12,
    "checkpoint_every": 2,
    "eval_every": 4,
    "ema": 0.9,
    "mixup": 0.3,
    "device": "cpu",
}
DAY = 86_400
FULL = 40  # operations that a full disk refuses


class Fault:
    """An audit hook that counts operations on files below a folder, and spoils one of them."""

    def __init__(self, folder: Path, kind: str, at: int, size: int = 0) -> None:
        self.folder, self.kind, self.at, self.size = str(folder), kind, at, size
        self.seen, self.written = 0, ""

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        """Hears of every operation of the process."""
        if event not in ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate"):
            return
        path = os.fsdecode(args[0]) if isinstance(args[0], str | bytes) else ""
        if not path.startswith(self.folder):
            return
        if event == "open":
            if not args[2] & (os.O_WRONLY | os.O_RDWR):
                return
            self.written = path
        self.seen += 1
        if self.seen >= self.at:
            self.strike()

    def strike(self) -> None:
        """What happens from the chosen operation on."""
        first = self.seen == self.at
        if self.kind == "torn" and first and Path(self.written).is_file():
            os.truncate(self.written, Path(self.written).stat().st_size // 2)
        if self.kind in ("kill", "torn"):
            os.kill(os.getpid(), signal.SIGKILL)
        if self.kind == "full" and self.seen < self.at + FULL:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if self.kind == "broken" and first:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        if self.kind == "clock" and first:
            now, jump = time.time, self.size
            time.time = lambda: now() + jump


def in_child(work: Callable[[], object]) -> tuple[str, str]:
    """Runs something in a process of its own: how it ended, and its error message.

    "done"; "error" for an error that a person can act on, with its text; "killed"; "foreign" for
    any other exception.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        code, printed = 0, ""
        try:
            work()
        except (HeadstartError, OSError) as error:
            code, printed = 2, str(error)
        except BaseException as error:  # a process of its own reports everything
            code, printed = 1, f"{type(error).__name__}: {error}"
        os.write(writing, printed.encode(errors="replace")[:4000])
        os._exit(code)
    os.close(writing)
    with os.fdopen(reading, errors="replace") as pipe:
        printed = pipe.read()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return "killed", printed
    return {0: "done", 2: "error"}.get(os.waitstatus_to_exitcode(status), "foreign"), printed


def outcome(out: Path) -> dict[str, Any]:
    """What a finished run left, without the times."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return {
        "log": [{k: v for k, v in line.items() if k != "seconds"} for line in lines],
        "weights": {name: t.tolist() for name, t in load_file(out / "model.safetensors").items()},
        "evaluations": json.loads((out / "results.json").read_text())["evaluations"],
        "files": sorted(path.name for path in out.rglob("*")),
    }


class Harness:
    """Runs without a fault first, and then one run for each trial.

    Args:
        photos: Images to train on.
        model: A tiny model.
        folder: Where runs may be written.
    """

    def __init__(self, photos: Path, model: Path, folder: Path) -> None:
        self.photos, self.model, self.folder = photos, model, folder
        self.unbroken = folder / "unbroken"
        counted = Fault(self.unbroken, "none", 1 << 60)

        def run() -> None:
            sys.addaudithook(counted)
            self.train(self.unbroken)
            (folder / "operations").write_text(str(counted.seen))

        ended, printed = in_child(run)
        if ended != "done":
            raise RuntimeError(f"the run without a fault: {ended} {printed}")
        self.operations = int((folder / "operations").read_text())
        self.expected = outcome(self.unbroken)

    def train(self, out: Path, **more: Any) -> None:
        """Begins a run, or with `resume` goes on with it."""
        options = {"resume": True} if more.get("resume") else OPTIONS | {"model": self.model} | more
        headstart.train(self.photos, out=out, workers=1, **options)

    def trial(self, number: int) -> tuple[str, str]:
        """The kind of the fault, and what was wrong; empty if the run is what it should be."""
        rng = random.Random(number)
        kind, at = KINDS[number % len(KINDS)], rng.randrange(1, self.operations + 1)
        out = self.folder / f"trial-{number}"
        fault = Fault(out, kind, at, rng.choice((-DAY, DAY)))

        def spoiled() -> None:
            sys.addaudithook(fault)
            self.train(out)

        ended, printed = in_child(spoiled)
        where = f"operation {at} of {self.operations}"
        if ended == "foreign" or (ended != "done" and kind == "clock"):
            return kind, f"{where}: {ended} {printed}"
        if ended != "done" or not (out / "report.html").exists():
            ended, printed = in_child(lambda: self.train(out, resume=True))
            if ended == "error":  # nothing to go on with, and it says so
                ended, printed = in_child(lambda: self.train(out, overwrite=True))
            if ended != "done":
                return kind, f"{where}: then {ended} {printed}"
        found = outcome(out)
        wrong = [key for key, value in self.expected.items() if found[key] != value]
        return kind, f"{where}: other {', '.join(wrong)}" if wrong else ""


def main() -> None:
    """Runs from the command line; the exit code is 1 if anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--first", type=int, default=0, help="number of the first trial")
    options = parser.parse_args()
    from photo_data import make_class_folders, write_tiny_model

    counts: collections.Counter[tuple[str, bool]] = collections.Counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        photos = make_class_folders(folder / "photos", {"bird": 12, "cat": 12, "dog": 12})
        harness = Harness(photos, write_tiny_model(folder / "tiny"), folder)
        for number in range(options.first, options.first + options.trials):
            kind, wrong = harness.trial(number)
            counts[kind, not wrong] += 1
            if wrong:
                print(f"trial {number}, {kind}: {wrong}", flush=True)
    print(f"{'fault':<10}{'right':>8}{'wrong':>8}")
    for kind in KINDS:
        print(f"{kind:<10}{counts[kind, True]:>8}{counts[kind, False]:>8}")
    sys.exit(int(any(not right for _, right in counts)))


if __name__ == "__main__":
    main()
