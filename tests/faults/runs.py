"""A small run before each of its verbs, as the kills and the flips find it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recipe.checkpoint import lora
from recipe.pipeline import stage
from recipe.stages import train

from .user import Ended, command, smaller

SETTINGS = ("max_iters=6", "save_steps=2", "batch_size=1", "max_length=256", "r=4", "lr=1e-2",
            "param_scheduler.0.end=2", "param_scheduler.1.begin=2")  # fmt: skip
AT_THE_END = "end"  # the state after the last verb
# Verb -> its folder in a run; of `model` and `replay` the runs share it.
FOLDERS = {
    "data": "main/data", "model": "models", "replay": "replay", "config": "main/config", "train": "main/train",
    "convert": "main/adapter", "merge": "main/merged", "export": "main/export", "gguf": "main/gguf",
}  # fmt: skip


@dataclass
class Runs:
    """A run that was made twice, for another name each time.

    Attributes:
        work: the work folder, the same for every case, since manifests hold paths.
        states: copies of it, as it was before each verb of the second time.
        model: the repository of the base.
        events: changes that each verb makes to the file system.
        expected: what each verb's folder holds after the second time, see `content`.
    """

    work: Path
    states: Path
    model: Path
    log: Path
    events: dict[str, int] = field(default_factory=dict)
    expected: dict[str, Any] = field(default_factory=dict)

    def words(self, verb: str, *more: str | Path) -> list[str | Path]:
        options: dict[str, tuple[str | Path, ...]] = {
            "data": ("--name", "小红", "--model", self.model),
            "config": ("--preset", "lora", "--set", *SETTINGS),
        }
        return [verb, "--work", self.work, *options.get(verb, ()), *more]

    def run(self, verb: str, *more: str | Path, kill_at: int = 0, change: Callable[[], None] = smaller) -> Ended:
        return command(self.words(verb, *more), log=self.log, change=change, watched=self.work, kill_at=kill_at)

    def restore(self, verb: str) -> None:
        """Put everything back to where it was before the verb."""
        shutil.rmtree(self.work)
        shutil.copytree(self.states / verb, self.work, symlinks=True)

    def folder(self, verb: str) -> Path:
        """The folder that a verb writes."""
        folder = self.work / FOLDERS[verb]
        return next(each for each in folder.iterdir() if each.is_dir()) if verb in ("model", "replay") else folder


def prepare(work: Path, states: Path, model: Path) -> Runs:
    """Make the run twice, and keep how it was before each verb of the second time."""
    runs = Runs(work, states, model, states / "log")
    states.mkdir()
    for first in (True, False):
        for verb in FOLDERS:
            if not first:
                shutil.copytree(work, states / verb, symlinks=True)
                if verb in ("model", "replay"):  # the same for both names
                    shutil.rmtree(states / verb / FOLDERS[verb])
                    shutil.rmtree(work / FOLDERS[verb])
            more = ("--name", "小明") if first and verb == "data" else ()
            ended = runs.run(verb, *more)
            assert ended.status == 0, ended.output
            runs.events[verb] = ended.events
    shutil.copytree(work, states / AT_THE_END, symlinks=True)
    runs.expected = {verb: content(runs.folder(verb), verb) for verb in FOLDERS}
    return runs


def content(folder: Path, verb: str) -> Any:
    """What a result comes to: hashes of its files, or of a training, whose logs hold times, the last weights."""
    manifest = stage.complete(folder, verb)
    stage.refuse_changed(folder, manifest)
    if verb == "train":
        tensors = lora.read_checkpoint(train.checkpoints(folder)[-1])
        return {name: tensor.tolist() for name, tensor in tensors.items()}
    return {name: entry["sha256"] for name, entry in manifest["outputs"].items()}
