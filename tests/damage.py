"""Damage to files, and a card without memory, for tests of what must notice it."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def flip_bit(file: Path, at: int = -1) -> None:
    """Flip a bit of the byte `at`: the last one of a file of weights is of a weight, and the file stays readable."""
    content = bytearray(file.read_bytes())
    content[at] ^= 1
    file.write_bytes(content)


def full_card(*_: Any, **__: Any) -> Any:
    """In place of a function that loads a model: a GPU that another process fills up, as torch says so."""
    import torch

    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.\nSee documentation")
