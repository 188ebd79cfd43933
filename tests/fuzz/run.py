"""Damages files of every format that headstart reads, and counts what comes of it.

`python tests/fuzz/run.py --minutes 30` prints a table by format. Every input is a number: the same
number is the same input, and `--format NAME --number N --out FILE` writes it.
Right is that a damaged file loads, or ends in one of headstart's own errors: in bounded time and
memory, without running code, starting a process or writing outside its folder.
"""

import argparse
import collections
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fuzz.formats import FORMATS
from fuzz.seeds import make_seeds
from fuzz.worker import input_of, quiet

HANG = 60  # seconds of one input, on a busy machine
WRONG = ("foreign", "crash", "hang", "memory", "slow", "message", "event")
COLUMNS = ("tried", "loaded", "clean", *WRONG)


class Table:
    """Counts by format, and one example of each wrong outcome."""

    def __init__(self) -> None:
        self.counts: dict[str, collections.Counter[str]] = {}
        self.examples: dict[tuple[str, str, str], dict[str, object]] = {}

    def add(self, name: str, found: dict[str, object]) -> None:
        """Counts an outcome."""
        counts = self.counts.setdefault(name, collections.Counter())
        counts.update(("tried", str(found["kind"])))
        if found["kind"] in WRONG:
            self.examples.setdefault((name, str(found["kind"]), str(found["place"])), found)

    @property
    def wrong(self) -> int:
        """Inputs that ended otherwise than they should."""
        return sum(counts[kind] for counts in self.counts.values() for kind in WRONG)

    def __str__(self) -> str:
        rows = [("format", *COLUMNS)]
        rows += [
            (name, *(str(counts[column]) for column in COLUMNS))
            for name, counts in sorted(self.counts.items())
        ]
        sums = [sum(counts[column] for counts in self.counts.values()) for column in COLUMNS]
        rows.append(("sum", *map(str, sums)))
        lines = [f"{row[0]:<16}" + "".join(f"{cell:>9}" for cell in row[1:]) for row in rows]
        lines += [
            f"{name} {found['number']}: {kind} {place} {found['text']}"
            for (name, kind, place), found in sorted(self.examples.items())
        ]
        return "\n".join(lines)


def run_block(name: str, first: int, count: int, base: Path, until: float) -> list[dict]:
    """Outcomes of a block of inputs; a worker that dies or hangs is replaced after its input."""
    found: list[dict] = []
    stop = first + count
    while first < stop and time.time() < until:
        with tempfile.NamedTemporaryFile("r") as before, tempfile.TemporaryFile("w+") as output:
            command = [sys.executable, str(Path(__file__).with_name("worker.py")), name]
            command += [str(first), str(stop - first), str(base), before.name]
            process = subprocess.Popen(command, stdout=output)
            hung = _wait(process, Path(before.name), until)
            output.seek(0)
            lines = [json.loads(line) for line in output if line.endswith("\n")]
            found += lines
            first += len(lines)
            if process.returncode == 0 or (hung is None and time.time() > until):
                break
            if not Path(before.name).read_text():
                raise RuntimeError(f"{name}: the whole files do not load; run {' '.join(command)}")
            kind = "hang" if hung else "crash"
            text = f"exit code {process.returncode}"
            found.append({"number": first, "kind": kind, "place": "", "text": text})
            first += 1
    return found


def _wait(process: subprocess.Popen, before: Path, until: float) -> bool | None:
    """Waits for a worker: True if it hung on an input, None if time was over."""
    while process.poll() is None:
        time.sleep(0.1)
        words = before.read_text().split()
        if len(words) == 2 and time.time() - float(words[1]) > HANG:
            process.kill()
            process.wait()
            return True
        if time.time() > until + HANG:
            process.kill()
            process.wait()
            return None
        if time.time() > until and len(words) == 2:
            process.terminate()
            process.wait()
            return None
    return False


def fuzz(
    minutes: float, names: list[str], first: int, block: int, workers: int, base: Path
) -> Table:
    """Goes round the formats, a block of inputs at a time, until the time is over."""
    table, until = Table(), time.time() + 60 * minutes
    with ThreadPoolExecutor(workers) as pool:
        start = first
        while time.time() < until:
            rounds = pool.map(lambda name, s=start: run_block(name, s, block, base, until), names)
            for name, found in zip(names, rounds, strict=True):
                for each in found:
                    table.add(name, each)
            start += block
    return table


def main() -> None:
    """Runs from the command line; the exit code is 1 if anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--format", action="append", choices=list(FORMATS))
    parser.add_argument("--first", type=int, default=0, help="number of the first input")
    parser.add_argument("--block", type=int, default=500, help="inputs of one worker")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--number", type=int, help="write this input of one --format to --out")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    quiet()
    with tempfile.TemporaryDirectory() as folder:
        base = make_seeds(Path(folder) / "base")
        names = options.format or list(FORMATS)
        if options.number is not None:
            options.out.write_bytes(input_of(names[0], options.number, base))
            return
        table = fuzz(
            options.minutes, names, options.first, options.block, options.workers or 1, base
        )
    print(table)
    sys.exit(1 if table.wrong else 0)


if __name__ == "__main__":
    main()
