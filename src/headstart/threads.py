"""How many threads to compute with, and how they wait for work.

PyTorch's threads wait for each other in a loop by default. On a machine that does other work too,
such a loop takes the processor from the thread that is waited for: 1,000 images took 4.0 s with one
thread and 25.9 s with two. Threads that sleep at once are slow on an idle machine, where the work
between two waits is short: they turn a few microseconds long first. All settings are read when
PyTorch loads, so a program sets them first.
"""

import os
import sys
from pathlib import Path

# Turns of the loop in which threads wait before they sleep (GNU's OpenMP). Of 0, 300, 1,000, 3,000
# and 10,000 on two processors, 1,000 computes small images 1.2 to 1.3 times as fast as 0 on an idle
# machine, and costs at most a quarter where one processor is busy; 3,000 costs half there.
SPIN = "1000"
QUOTA = (
    Path("/sys/fs/cgroup/cpu.max"),  # "200000 100000": microseconds in each period
    Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"),  # the older form, in two files
)


def prepare() -> None:
    """Sets the number of threads and their wait policy for a PyTorch that is not loaded yet.

    `OMP_NUM_THREADS`, `OMP_WAIT_POLICY` and `GOMP_SPINCOUNT` of the environment win.
    """
    if "torch" not in sys.modules:
        if "OMP_WAIT_POLICY" not in os.environ:  # a count would overrule a policy that was set
            os.environ.setdefault("GOMP_SPINCOUNT", SPIN)
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
