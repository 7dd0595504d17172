"""Damage to files, for tests of what must notice it."""

from __future__ import annotations

from pathlib import Path


def flip_bit(file: Path, at: int = -1) -> None:
    """Flip a bit of the byte `at`: the last one of a file of weights is of a weight, and the file stays readable."""
    content = bytearray(file.read_bytes())
    content[at] ^= 1
    file.write_bytes(content)
