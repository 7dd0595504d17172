"""How the process of a verb ends where torch is loaded: at once, with its status, after what others have registered."""

from __future__ import annotations

import subprocess
import sys

import pytest

from recipe.paths import ROOT

PROGRAM = """
import atexit, runpy, sys, types

class Heavy:
    def __del__(self):
        print("taken apart", flush=True)

sys.modules["torch"] = types.ModuleType("torch")
sys.modules["torch"].heavy = Heavy()
import recipe.cli
main = recipe.cli.main

def registering(*arguments):
    atexit.register(print, "flushed by a library")
    return main(*arguments)

recipe.cli.main = registering
sys.argv = ["recipe", *sys.argv[1:]]
runpy.run_module("recipe", run_name="__main__")
"""


@pytest.mark.parametrize(("arguments", "status"), [(["--help"], 0), (["nothing"], 2), (["merge", "--run", "/"], 1)])
def test_a_process_with_torch_ends_at_once_with_its_status(arguments: list[str], status: int) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ended.returncode == status, ended.stderr
    assert "flushed by a library" in ended.stdout
    assert "taken apart" not in ended.stdout
