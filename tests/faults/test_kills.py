"""Processes killed at file-system events: no run is lost, and the same command makes the result that was wanted."""

from __future__ import annotations

import random
import signal
from collections import Counter
from collections.abc import Callable

from recipe.pipeline import stage
from recipe.stages import train

from .conftest import seed
from .runs import FOLDERS, Runs, content

KILLS = 100


def lost(runs: Runs, verb: str, moments: list[int], kills: Counter[str]) -> str:
    """Why a run is lost after kills at those moments, one in each attempt; empty where it is not. Counts in `kills`."""
    runs.restore(verb)
    before = stage.read_manifest(runs.work / FOLDERS[verb]) if verb not in ("model", "replay") else None
    for moment in moments:
        ended = runs.run(verb, *_resume(runs, verb), kill_at=moment)
        if ended.status == 0:
            break  # an attempt that had less to do than the first
        if ended.status != -signal.SIGKILL:
            return f"an attempt after a kill ended with {ended.status}: {ended.output[-300:]}"
        kills[verb] += 1
        folder = runs.work / FOLDERS[verb]
        if before and (manifest := stage.read_manifest(folder)):
            stage.refuse_changed(folder, manifest)  # the old result or the new one, whole
    ended = runs.run(verb, *_resume(runs, verb))
    if ended.status:
        return f"the last attempt ended with {ended.status}: {ended.output[-300:]}"
    if content(runs.folder(verb), verb) != runs.expected[verb]:
        return "another result"
    left = [path.name for path in runs.folder(verb).parent.glob(".*") if path.suffix in (".old", ".partial")]
    return f"left behind: {left}" if left else ""


def _resume(runs: Runs, verb: str) -> tuple[str, ...]:
    partial = runs.work / "main" / ".train.partial"
    return ("--resume",) if verb == "train" and train.checkpoints(partial) else ()


def test_no_run_is_lost(runs: Runs, note: Callable[[str], None]) -> None:
    rng = random.Random(f"{seed()} kills")
    failed, kills = {}, Counter[str]()
    while kills.total() < KILLS:
        for verb in FOLDERS:
            count = min(rng.choice((1, 1, 2)), KILLS - kills.total())
            moments = [rng.randint(1, runs.events[verb]) for _ in range(count)]
            if moments and (reason := lost(runs, verb, moments, kills)):
                failed[f"{verb} {moments}"] = reason
    events = ", ".join(f"{verb} {kills[verb]} of {runs.events[verb]}" for verb in FOLDERS)
    note(f"kills: {kills.total()} at file-system events ({events}), {len(failed)} lost")
    assert not failed
