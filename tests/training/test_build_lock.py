from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from torch.utils import cpp_extension

from recipe.paths import ROOT
from recipe.training import build_lock
from recipe.training.build_lock import BuildLock

HOLD = """
import sys, time
from recipe.training.build_lock import BuildLock
print(BuildLock(sys.argv[1]).try_acquire(), flush=True)
time.sleep(600)
"""


def test_a_killed_process_leaves_no_lock(tmp_path: Path) -> None:
    path = str(tmp_path / "lock")
    Path(path).touch()  # of a killed process that used torch's own
    holder = subprocess.Popen([sys.executable, "-c", HOLD, path], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "True\n"
        assert not BuildLock(path).try_acquire()
        os.kill(holder.pid, signal.SIGKILL)
    waited = BuildLock(path)
    waited.wait()
    next_one = BuildLock(path)
    assert next_one.try_acquire()
    assert not BuildLock(path).try_acquire()
    next_one.release()
    assert BuildLock(path).try_acquire()


def test_torch_compiles_under_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpp_extension, "FileBaton", cpp_extension.FileBaton)  # put back afterwards
    build_lock.install()
    assert cpp_extension.FileBaton is BuildLock
    used = {"try_acquire", "wait", "release"}
    source = Path(cpp_extension.__file__).read_text(encoding="utf-8")
    assert {name for name in used if f"baton.{name}(" in source} == used
