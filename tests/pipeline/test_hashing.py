"""What is hashed while other work goes on is what lies there when it is asked for."""

from __future__ import annotations

import hashlib
import os
import threading
from pathlib import Path

import pytest

from recipe.pipeline import hashing
from recipe.pipeline.hashing import file_sha256, hash_ahead


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that were read, and by which thread."""
    names: list[str] = []
    plain = hashing._sha256

    def noted(path: Path) -> str:
        names.append(f"{path.name} {'main' if threading.current_thread() is threading.main_thread() else 'beside'}")
        return plain(path)

    monkeypatch.setattr(hashing, "_sha256", noted)
    return names


def test_a_file_is_read_once_and_beside(tmp_path: Path, read: list[str]) -> None:
    (file := tmp_path / "a").write_bytes(content := b"x" * 3_000_000)
    hash_ahead(file)
    file.rename(moved := tmp_path / "b")  # a stage's folder is renamed when it is complete
    assert file_sha256(moved) == sha256(content)
    assert read in (["a beside"], ["a beside", "b main"])  # the thread may begin after the renaming


def test_what_was_computed_is_used(tmp_path: Path, read: list[str]) -> None:
    (file := tmp_path / "a").write_bytes(b"x")
    hash_ahead(file)
    assert file_sha256(file) == sha256(b"x")
    assert read == ["a beside"]
    assert file_sha256(file) == sha256(b"x")  # what is asked again is read again
    assert read == ["a beside", "a main"]


@pytest.mark.parametrize("later", [b"longer", b"y"], ids=["another size", "another time"])
def test_a_file_that_changed_since_is_hashed_anew(tmp_path: Path, later: bytes) -> None:
    (file := tmp_path / "a").write_bytes(b"x")
    hash_ahead(file)
    stat = file.stat()
    file.write_bytes(later)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert file_sha256(file) == sha256(later)


def test_another_file_in_its_place_is_hashed_anew(tmp_path: Path) -> None:
    (file := tmp_path / "a").write_bytes(b"x")
    hash_ahead(file)
    stat = file.stat()
    (other := tmp_path / "b").write_bytes(b"y")
    os.utime(other, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    other.replace(file)
    assert file_sha256(file) == sha256(b"y")


def test_a_file_that_is_gone_is_the_same_error_as_ever(tmp_path: Path) -> None:
    (file := tmp_path / "a").write_bytes(b"x")
    hash_ahead(file)
    file.unlink()
    with pytest.raises(FileNotFoundError):
        file_sha256(file)
