"""A command of Make in an error is the one to type, for the run and the folder that the user works with."""

from __future__ import annotations

import contextvars
from pathlib import Path

import pytest

from recipe.paths import ROOT
from recipe.pipeline.exact_commands import called_for, exact
from recipe.pipeline.stage import say

MAKE = ROOT / "work"
ELSEWHERE = Path("/w 2")


@pytest.mark.parametrize(
    ("command", "run", "typed"),
    [
        ("make merge", "main", "make merge"),
        ("make merge", "mine", "make merge RUN=mine"),
        ("make merge RUN=other", "mine", "make merge RUN=other"),
        ("make eval gguf RUN=a", "a", "make eval gguf RUN=a"),
        ("make quickstart NAME=小明", "quickstart", "make quickstart NAME=小明"),
        ("make quickstart NAME=小明", "main", "make quickstart RUN=main NAME=小明"),
        ("make quickstart NAME=小明", None, "make quickstart NAME=小明"),
        ("make chat", "main", "make chat RUN=main"),
        ("make sweep", "mine", "make sweep"),
        ("make clean RUN=a", "mine", "make clean RUN=a"),
    ],
)
def test_where_make_has_its_results_it_names_the_run(command: str, run: str | None, typed: str) -> None:
    assert exact(f"gone: run `{command}` first, or `other`", MAKE, run) == f"gone: run `{typed}` first, or `other`"


@pytest.mark.parametrize(
    ("command", "run", "typed"),
    [
        ("make merge", "main", "python -m recipe merge --work '/w 2' --run main"),
        ("make merge RUN=other", "main", "python -m recipe merge --work '/w 2' --run other"),
        ("make merge", None, "python -m recipe merge --work '/w 2'"),
        ("make publish REPO=a/b DRY_RUN=1", "m", "python -m recipe publish --work '/w 2' --run m --repo a/b --dry-run"),
        ("make chat CHAT='--model x'", "m", "python -m recipe chat --work '/w 2' --run m --model x"),
        (
            "make eval gguf RUN=a", "m",
            "python -m recipe eval --work '/w 2' --run a && python -m recipe gguf --work '/w 2' --run a",
        ),
        ("make clean RUN=a", "m", "rm -r '/w 2/a'"),
        ("make sweep", "m", "make sweep"),
        ("make doctor", "m", "make doctor"),
    ],
)  # fmt: skip
def test_elsewhere_it_is_python_s_with_the_folder(command: str, run: str | None, typed: str) -> None:
    assert exact(f"gone: run `{command}` first", ELSEWHERE, run) == f"gone: run `{typed}` first"


def test_a_line_of_progress_is_as_exact_as_an_error_and_a_library_call_changes_nothing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def inside() -> None:
        with called_for(ELSEWHERE, "m"):
            say("model", "run `make model` again")
        say("model", "run `make model` again")

    contextvars.copy_context().run(inside)
    first, second = capsys.readouterr().err.splitlines()
    assert first == "[model] run `python -m recipe model --work '/w 2' --run m` again"
    assert second == "[model] run `make model` again"
