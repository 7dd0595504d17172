"""The control groups around this process: Linux limits a container's cores and memory by them.

Sources: Linux, Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/cgroups.rst; cgroup_namespaces(7).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

MEMBERSHIP, ROOT = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def folders(controller: str) -> Iterator[Path]:
    """The folders of the groups that may limit this process, of version 2 and of version 1.

    Args:
        controller: of version 1, such as "cpu".
    """
    try:
        lines = MEMBERSHIP.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        root = ROOT / controllers if controllers else ROOT
        group = root / path.lstrip("/")
        # In a container's own namespace the root is the container's group, whatever the path says.
        yield from [root, *(each for each in (group, *group.parents) if root in each.parents)]
