"""How many CPU cores this process may use, and how many threads it computes with."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from recipe.errors import RecipeError

# The variable that the user sets, and those that torch's OpenMP and MKL read when torch is imported.
THREADS = "THREADS"
LIBRARIES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
CGROUP_MEMBERSHIP, CGROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def cores() -> int:
    """Whole cores for this process: those that it may run on, within the quotas of its control groups.

    A container with `--cpus 2` sees all cores of its machine. With a thread for each of them most threads only wait.
    """
    return max(1, int(min([len(os.sched_getaffinity(0)), *_quotas()])))


def limit_threads() -> None:
    """Have torch compute with THREADS threads, or as many as `cores` where a quota allows fewer than its default.

    Call it before torch is imported. What the user set for OpenMP stays.

    Raises:
        RecipeError: THREADS is no whole number from 1.
    """
    chosen = os.environ.get(THREADS, "").strip()
    if chosen:
        if not (chosen.isascii() and chosen.isdigit() and int(chosen)):
            raise RecipeError(f"THREADS={chosen} is no number of threads: choose a whole number from 1")
        os.environ.update(dict.fromkeys(LIBRARIES, str(int(chosen))))
    elif LIBRARIES[0] not in os.environ and cores() < len(os.sched_getaffinity(0)):
        os.environ.update(dict.fromkeys(LIBRARIES, str(cores())))


def _quotas() -> Iterator[float]:
    """The cores that each control group around this process grants; nothing for those without a limit.

    Sources: Linux, Documentation/admin-guide/cgroup-v2.rst (cpu.max) and scheduler/sched-bwc.rst (cpu.cfs_quota_us).
    """
    try:
        lines = CGROUP_MEMBERSHIP.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = CGROUPS / controllers if controllers else CGROUPS
        group = root / path.lstrip("/")
        # In a container's own namespace the root is the container's group, whatever the path says.
        for folder in [root, *(each for each in (group, *group.parents) if root in each.parents)]:
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
