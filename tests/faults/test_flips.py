"""A flipped bit in what a stage wrote: the next verb names the folder in one line and builds nothing on it."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

from recipe.pipeline import stage
from recipe.stages import train

from .conftest import seed
from .runs import AT_THE_END, Runs

FLIPS = 60
# Verb whose result is damaged -> verbs that read all of it.
READERS = {
    "data": ("config", "eval"), "model": ("replay", "config", "merge"), "config": ("train",), "train": ("convert",),
    "convert": ("merge",), "merge": ("export", "gguf", "chat"),
}  # fmt: skip
TALK = {"chat": ("--prompt", "你好", "--max-new-tokens", "2")}


def flip(folder: Path, verb: str, rng: random.Random) -> str:
    """Flip one bit of one file that a stage wrote and its readers read, of a training the best checkpoint alone.

    Returns:
        The file's name.
    """
    names = [name for name, entry in stage.complete(folder, verb)["outputs"].items() if entry["bytes"]]
    if verb == "train":
        names = [train.CONFIG, f"{train.best_checkpoint(folder)}.pth"]
    name = rng.choice(sorted(names))
    content, before = bytearray((folder / name).read_bytes()), (folder / name).stat()
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    (folder / name).write_bytes(content)
    os.utime(folder / name, ns=(before.st_atime_ns, before.st_mtime_ns))  # as `cp -a` keeps them
    return name


def test_no_flip_goes_unnoticed(runs: Runs, note: Callable[[str], None]) -> None:
    rng = random.Random(f"{seed()} flips")
    unnoticed = []
    for _ in range(FLIPS):
        verb = rng.choice(list(READERS))
        reader = rng.choice(READERS[verb])
        runs.restore(AT_THE_END)
        folder = runs.folder(verb)
        name = flip(folder, verb, rng)
        ended = runs.run(reader, *TALK.get(reader, ()))
        if not ended.one_line or str(folder) not in ended.output.splitlines()[-1]:
            unnoticed.append(f"{name} of {verb}, read by {reader}: {ended.status} {ended.output[-300:]}")
    note(f"flips: {FLIPS} bits in results, {FLIPS - len(unnoticed)} noticed in one line, {len(unnoticed)} unnoticed")
    assert not unnoticed, "\n".join(unnoticed)
