"""What a stage spends its seconds on: `with phase("load"):` around the work, and `take` for the manifest.

The phases of a table: import, load, tokenise, compile, generate, steps, score, save, hash. On a GPU a phase ends when
its kernels are launched, so that the last of them may count for the phase that waits for them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from contextlib import ContextDecorator

# In the order in which they are shown, and what they leave of a stage's seconds.
PHASES = ("import", "load", "tokenise", "compile", "generate", "steps", "score", "save", "hash")
OTHER = "other"


class _Clock(threading.local):
    """Seconds of each phase in this thread; time inside an inner phase is not counted for the outer one."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.open: list[str] = []
        self.since = 0.0  # time.perf_counter

    def count(self) -> None:
        """Add the time since the last change to the innermost open phase."""
        now = time.perf_counter()
        if self.open:
            self.seconds[self.open[-1]] = self.seconds.get(self.open[-1], 0.0) + now - self.since
        self.since = now


_clock = _Clock()


class phase(ContextDecorator):  # noqa: N801 - used as a verb: `with phase("load"):`, `@phase("load")`
    """Count the time of a block, or of each call of a function, for a phase.

    Leaving it also ends what was begun inside and not ended, as by a training that failed.

    Args:
        name: one of PHASES.
    """

    def __init__(self, name: str) -> None:
        if name not in PHASES:
            raise ValueError(f"{name!r} is none of {', '.join(PHASES)}")
        self.name = name

    def _recreate_cm(self) -> phase:
        return type(self)(self.name)  # of each call of a function one of its own

    def __enter__(self) -> phase:
        _clock.count()
        self.depth = len(_clock.open)
        _clock.open.append(self.name)
        return self

    def __exit__(self, *_: object) -> None:
        _clock.count()
        del _clock.open[self.depth :]


def add(seconds: Mapping[str, float]) -> None:
    """Count what another process has spent, by phase."""
    for name, value in seconds.items():
        _clock.seconds[name] = _clock.seconds.get(name, 0.0) + value


def take() -> dict[str, float]:
    """The seconds of each phase since the last call, in the order of PHASES, and start anew. None is below 1 ms."""
    _clock.count()
    taken = {name: round(_clock.seconds.get(name, 0.0), 3) for name in PHASES}
    _clock.seconds = {}
    return {name: seconds for name, seconds in taken.items() if seconds}


def with_other(phases: Mapping[str, float], seconds: float) -> dict[str, float]:
    """The phases of a stage, and what they leave as OTHER.

    Args:
        phases: seconds of each, as a manifest has them.
        seconds: that the stage took, from whenever the caller counts; they may be fewer than those of its phases.
    """
    return {**phases, OTHER: max(0.0, seconds - sum(phases.values()))}
