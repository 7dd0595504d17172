"""sha256 of files, of some while other work goes on.

A file of this process's own that is complete is hashed in a thread, so that the stage's end does not wait for
gigabytes. What was computed so holds as long as the file is the same one, of the same size and time.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
from pathlib import Path

from recipe.pipeline.phases import phase

Identity = tuple[int, int, int, int]


class _Ahead(threading.Thread):
    """Hashes one file. digest: None until it is known, or where the file is gone."""

    def __init__(self, path: Path) -> None:
        super().__init__(daemon=True)  # an interrupted process does not wait for it
        self.path = path
        self.digest: str | None = None

    def run(self) -> None:
        with contextlib.suppress(OSError):  # whoever asks reads it again, and reports that
            self.digest = _sha256(self.path)


_ahead: dict[Identity, _Ahead] = {}


def hash_ahead(path: Path) -> None:
    """Begin to hash a file that this process has written and will write no more."""
    thread = _ahead[_identity(path)] = _Ahead(path)
    thread.start()


def file_sha256(path: Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    with phase("hash"):
        if thread := _ahead.pop(_identity(path), None):
            thread.join()
        return (thread and thread.digest) or _sha256(path)


def _identity(path: Path) -> Identity:
    stat = path.stat()
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
