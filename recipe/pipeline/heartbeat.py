"""No silence over ten seconds where a library shows nothing by itself."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from recipe.pipeline import stage

EVERY = 10.0  # seconds


@contextmanager
def heartbeat(name: str, what: str) -> Iterator[None]:
    """A context that says every ten seconds that it goes on.

    Args:
        name: of the stage or server, as `stage.say` takes it.
        what: goes on.
    """
    ended, started = threading.Event(), time.monotonic()

    def beat() -> None:
        while not ended.wait(EVERY):
            stage.say(name, f"{what}: {time.monotonic() - started:.0f} s")

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
