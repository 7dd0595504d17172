"""Damage to files, and a card without memory, for tests of what must notice it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from recipe.pipeline import stage


def flip_bit(file: Path, at: int = -1) -> None:
    """Flip a bit of the byte `at`: the last one of a file of weights is of a weight, and the file stays readable."""
    content = bytearray(file.read_bytes())
    content[at] ^= 1
    file.write_bytes(content)


def full_card(*_: Any, **__: Any) -> Any:
    """In place of a function that loads a model: a GPU that another process fills up, as torch says so."""
    import torch

    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.\nSee documentation")


def sign(folder: Path) -> None:
    """Let the manifest of a stage's folder say of its files what they are now, as if the stage had written them so."""
    manifest = json.loads((folder / stage.MANIFEST).read_text(encoding="utf-8"))
    manifest["outputs"] = {
        file.name: {
            "sha256": stage.file_sha256(file), "bytes": file.stat().st_size, "mtime_ns": file.stat().st_mtime_ns
        }
        for file in folder.iterdir()
        if file.is_file() and file.name != stage.MANIFEST
    }  # fmt: skip
    (folder / stage.MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
