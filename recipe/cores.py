"""How many CPU cores this process may use, how many threads it computes with, and how these wait for each other."""

from __future__ import annotations

import os
import re
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

from recipe import control_groups
from recipe.errors import RecipeError

# The variable that the user sets, and those that torch's OpenMP and MKL read when torch is imported.
THREADS = "THREADS"
LIBRARIES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
# More than any machine has cores. OpenMP ignores a number that it cannot read, and ends the process where it cannot
# start as many threads as it was told.
MOST_THREADS = 4096
# How threads wait for each other, read likewise. Asleep, on cores that others use too. On free cores waking up costs a
# third of a step of the miniature, so that they look a while first. docs/experiments.md has the seconds of both.
WAIT_POLICY, SPIN_COUNT = "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"
SPINS = "1000"  # some 20 microseconds
LOAD = Path("/proc/loadavg")
READINGS, INTERVAL = 5, 0.01  # of the processes that run, in seconds apart


def cores() -> int:
    """Whole cores for this process: those that it may run on, within the quotas of its control groups.

    A container with `--cpus 2` sees all cores of its machine. With a thread for each of them most threads only wait.
    """
    return max(1, int(min([len(os.sched_getaffinity(0)), *_quotas()])))


def limit_threads() -> None:
    """Have torch compute with THREADS threads, or as many as `cores` where a quota allows fewer than its default.

    Call it before torch is imported. What the user set for OpenMP stays.

    Raises:
        RecipeError: THREADS is no whole number from 1 to MOST_THREADS.
    """
    chosen = os.environ.get(THREADS, "").strip()
    if chosen:
        if not (re.fullmatch(r"0*\d{1,4}", chosen, re.ASCII) and 1 <= int(chosen) <= MOST_THREADS):
            raise RecipeError(
                f"THREADS={chosen[:20]} is no number of threads: choose a whole number from 1 to {MOST_THREADS}"
            )
        os.environ.update(dict.fromkeys(LIBRARIES, str(int(chosen))))
    elif LIBRARIES[0] not in os.environ and cores() < len(os.sched_getaffinity(0)):
        os.environ.update(dict.fromkeys(LIBRARIES, str(cores())))


def choose_waiting(*, gpu: bool) -> None:
    """Have torch's threads wait asleep, or look a while first where the machine's cores are free and compute.

    The results are the same. Call it before torch is imported. What the user set for OpenMP stays.

    Args:
        gpu: whether a GPU computes, beside which no thread need look.
    """
    if WAIT_POLICY in os.environ or SPIN_COUNT in os.environ:
        return
    if gpu or _others() >= (os.cpu_count() or 1) / 2:
        os.environ[WAIT_POLICY] = "PASSIVE"
    else:
        os.environ[SPIN_COUNT] = SPINS


def _others() -> float:
    """Threads of other processes that run or could, on the whole machine; infinite where it does not say.

    Source: Linux, Documentation/filesystems/proc.rst, loadavg: the fourth field is running/all, this thread among them.
    """
    readings = []
    for _ in range(READINGS):
        try:
            readings.append(int(LOAD.read_text(encoding="utf-8").split()[3].partition("/")[0]) - 1)
        except (OSError, ValueError, IndexError):
            return float("inf")
        time.sleep(INTERVAL)
    return statistics.median(readings)


def _quotas() -> Iterator[float]:
    """The cores that each control group around this process grants; nothing for those without a limit.

    Sources: Linux, Documentation/admin-guide/cgroup-v2.rst (cpu.max) and scheduler/sched-bwc.rst (cpu.cfs_quota_us).
    """
    for folder in control_groups.folders("cpu"):
        if quota := _quota(folder):
            yield quota


def _quota(folder: Path) -> float | None:
    """Cores that one control group grants, of version 2 or 1; None without a limit."""
    try:
        if (file := folder / "cpu.max").is_file():
            quota, period = file.read_text(encoding="utf-8").split()
        else:
            quota, period = (
                (folder / name).read_text(encoding="utf-8").strip()
                for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us")
            )
        return int(quota) / int(period) if quota not in ("max", "-1") else None
    except (OSError, ValueError):
        return None
