"""An output that cannot show a run's names is said at the start of a verb, and ends none after its work."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from recipe.paths import ROOT
from recipe.pipeline import choices

C = {"LC_ALL": "C", "PYTHONUTF8": "0"}
NOTICE = "[run] what the output lacks is shown as "
REMEDY = "set PYTHONUTF8=1, or a locale such as LC_ALL=C.UTF-8, and run it again"


def recipe(work: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    own = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"} | environment
    command = [sys.executable, "-m", "recipe", *arguments, "--work", str(work)]
    return subprocess.run(command, cwd=ROOT, env=own, check=False, capture_output=True, text=True, errors="replace")


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A folder of runs, with one whose name was chosen before."""
    (tmp_path / "main").mkdir()
    (tmp_path / "main" / choices.FILE).write_text('{"name": "小明", "model": "miniature"}', encoding="utf-8")
    return tmp_path


def test_a_verb_says_at_its_start_what_the_output_lacks_and_does_its_work(work: Path) -> None:
    done = recipe(work, "data", **C)
    notice, *lines = done.stderr.splitlines()
    assert done.returncode == 0
    assert notice.startswith(rf"{NOTICE}\u62a5\u544a: ascii, of the locale (LC_ALL=C, PYTHONUTF8=0)")
    assert notice.endswith(REMEDY)
    assert NOTICE not in "".join(lines)
    assert r"NAME=\u5c0f\u660e" in lines[0]
    assert NOTICE not in recipe(work, "data", "--after", "model", **C).stderr  # of one make, the first said it


def test_the_next_steps_are_shown_where_the_output_lacks_their_characters(work: Path) -> None:
    """What `eval` and `report` print after their work, which ended them."""
    script = (
        "import sys; from recipe import cli; from recipe.cli import commands; "
        "commands.COMMANDS['report'] = lambda _: print('报告 report'); "
        f"sys.exit(cli.main(['report', '--work', {str(work)!r}]))"
    )
    for environment in (C, {"PYTHONIOENCODING": "latin-1"}):
        own = os.environ | {"CUDA_VISIBLE_DEVICES": ""} | environment
        done = subprocess.run(
            [sys.executable, "-X", "utf8=0", "-"], cwd=ROOT, env=own | {"PYTHONPATH": str(ROOT)}, check=False,
            capture_output=True, input=script.encode(),
        )  # fmt: skip
        assert (done.returncode, done.stdout) == (0, b"\\u62a5\\u544a report\n")
        assert done.stderr.decode().count(NOTICE) == 1


@pytest.mark.parametrize("encoding", ["gbk", "latin-1"])
def test_an_encoding_is_judged_by_the_names_of_the_run(work: Path, encoding: str) -> None:
    shown = recipe(work, "data", PYTHONIOENCODING=encoding)
    assert (NOTICE in shown.stderr) == (encoding == "latin-1")
    lacking = recipe(work, "data", "--name", "Zoe\N{SEEDLING}", PYTHONIOENCODING=encoding)
    assert (lacking.returncode, lacking.stderr.count(NOTICE)) == (0, 1)


def test_an_output_of_utf_8_is_not_mentioned(work: Path) -> None:
    assert NOTICE not in recipe(work, "data", LC_ALL="C.UTF-8").stderr


def test_a_conversation_is_refused_before_its_model_is_loaded(work: Path) -> None:
    done = recipe(work, "chat", "--model", str(work / "no-model"), **C)
    (error,) = done.stderr.splitlines()
    assert (done.returncode, error.endswith(REMEDY)) == (1, True)


def test_an_empty_prompt_is_not_sent(work: Path) -> None:
    for prompt in ("", " \n"):
        done = recipe(work, "chat", "--prompt", prompt)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith("error: --prompt is empty: ")
