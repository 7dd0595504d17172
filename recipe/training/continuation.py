"""How a training that ended early goes on: its checkpoints, and the command that resumes from the last of them."""

from __future__ import annotations

import shlex
import zipfile
from collections.abc import Sequence
from pathlib import Path

from recipe.errors import RecipeError
from recipe.pipeline import stage


def checkpoints(folder: Path, processes: int = 0) -> list[Path]:
    """The checkpoints in `folder` that can be read to the end, oldest first: files, or folders under DeepSpeed.

    A process killed while it saves leaves a file without the directory that ends a zip archive. processes: of whom each
    must have written its part of a folder.
    """

    def whole(path: Path) -> bool:
        if path.is_file():
            return zipfile.is_zipfile(path)
        parts = list(path.glob("*.pt"))
        return sum("optim_states" in part.name for part in parts) >= processes and all(map(zipfile.is_zipfile, parts))

    complete = [path for path in folder.glob("iter_*.pth") if whole(path)]
    return sorted(complete, key=lambda path: int(path.stem.removeprefix("iter_")))


def refuse_damaged(checkpoint: Path) -> None:
    """RecipeError where the checksums in a checkpoint, which are those of a zip archive, are not of its content."""
    for part in [checkpoint] if checkpoint.is_file() else sorted(checkpoint.glob("*.pt")):
        try:
            damaged = zipfile.ZipFile(part).testzip()
        except zipfile.BadZipFile as error:
            damaged = str(error)
        if damaged:
            raise RecipeError(
                f"{stage.shown(part)}: is damaged ({damaged}): remove {stage.shown(checkpoint)} and resume from the "
                f"checkpoint before it, or start over without RESUME=1"
            )


def how_to_go_on(folder: Path, command: Sequence[str], processes: int = 0) -> str:
    """The exact next command after a training that ended early, and what it will do.

    Args:
        folder: the work folder that the training has left.
        command: what trains so again from the first step, in words: of `make`, or of `python -m recipe`.
        processes: that trained.
    """
    if saved := checkpoints(folder, processes):
        resume = "RESUME=1" if command[0] == "make" else "--resume"
        return f"`{shlex.join([*command, resume])}` goes on from {saved[-1].stem}"
    return f"no checkpoint was saved yet: `{shlex.join(command)}` starts the training again"
