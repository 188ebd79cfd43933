"""How many threads to compute with, and how they wait for work.

PyTorch's threads wait for each other in a loop by default. On a machine that does other work too,
such a loop takes the processor from the thread that is waited for: 1,000 images took 4.0 s with one
thread and 25.9 s with two. Both settings are read when PyTorch loads, so a program sets them first.
"""

import os
import sys
from pathlib import Path

QUOTA = (
    Path("/sys/fs/cgroup/cpu.max"),  # "200000 100000": microseconds in each period
    Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"),  # the older form, in two files
)


def prepare() -> None:
    """Sets the number of threads and their wait policy for a PyTorch that is not loaded yet.

    `OMP_NUM_THREADS` and `OMP_WAIT_POLICY` of the environment win.
    """
    if "torch" not in sys.modules:
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        os.environ.setdefault("OMP_NUM_THREADS", str(choose()))


def choose() -> int:
    """Processors that this process may use and that are not busy; at least 1."""
    return max(1, min(allowed(), (os.cpu_count() or 1) - busy()))


def allowed() -> int:
    """Processors that affinity and the container's limit leave to this process."""
    known = hasattr(os, "sched_getaffinity")  # not on macOS
    count = len(os.sched_getaffinity(0)) if known else os.cpu_count() or 1
    limit = quota(*QUOTA)
    return count if limit is None else max(1, min(count, round(limit)))


def quota(unified: Path, older: Path) -> float | None:
    """Processors that the control group is limited to, or None."""
    try:
        if unified.is_file():
            most, period = unified.read_text().split()
        else:
            most, period = older.read_text(), older.with_name("cpu.cfs_period_us").read_text()
        return int(most) / int(period) if int(most) > 0 else None
    except (OSError, ValueError, ZeroDivisionError):  # no limit ("max"), or no control groups
        return None


def busy() -> int:
    """Processors that others keep busy, now and over the last minute (the lower of the two)."""
    try:
        load = os.getloadavg()[0]
        running = int(Path("/proc/loadavg").read_text().split()[3].partition("/")[0]) - 1
    except (OSError, AttributeError, ValueError, IndexError):  # not Linux
        return 0
    return max(0, round(min(load, running)))
