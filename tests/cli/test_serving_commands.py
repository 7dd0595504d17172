"""Whose model `chat` talks with: that of RUN, or of the run that merged last, as page and API do."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from recipe import cli
from recipe.pipeline import stage
from recipe.serving import terminal


@pytest.fixture
def talks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The models that talk, and two runs: the first was merged last."""
    models: list[Path] = []

    def run(*, model: Path, **options: Any) -> None:
        models.append(model)

    monkeypatch.setattr(terminal, "run", run)
    for seconds, name in ((2_000_000_000, "first"), (1_000_000_000, "second")):
        folder = tmp_path / name / "merged"
        stage.run("merge", folder, inputs={}, settings={}, work=lambda out: {})
        os.utime(folder / stage.MANIFEST, (seconds, seconds))
    return models


def test_without_run_the_one_that_merged_last_talks_and_is_named(
    talks: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["chat", "--work", str(tmp_path), "--prompt", "?"]) == 0
    assert talks == [tmp_path / "first" / "merged"]
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.splitlines()[-1] == f"[chat] {talks[0]}, which was merged last; RUN= chooses another"


def test_the_run_that_is_named_talks(talks: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert cli.main(["chat", "--work", str(tmp_path), "--run", "second"]) == 0
    assert talks == [tmp_path / "second" / "merged"]
    assert capsys.readouterr().err == ""


def test_a_model_that_is_named_talks_whatever_was_merged(
    talks: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert cli.main(["chat", "--work", str(tmp_path), "--model", "miniature"]) == 0
    assert talks == [tmp_path / "models" / "miniature"]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("verb", ["demo", "api"])
def test_a_server_gets_its_options_and_no_run_that_cannot_be(
    verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[dict[str, Any]] = []
    monkeypatch.setattr(f"recipe.serving.{verb}.run", lambda **options: calls.append(options))
    arguments = [verb, "--work", str(tmp_path), "--host", "::1", "--port", "7000"]
    assert cli.main([*arguments, "--run", "mine"]) == cli.main(arguments) == 0
    usual = {"work": tmp_path, "host": "::1", "port": 7000}
    assert [call | {"run": call["run"] or None} for call in calls] == [usual | {"run": "mine"}, usual | {"run": None}]
    assert cli.main([*arguments, "--run", "../mine"]) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: RUN='../mine'")


def test_a_run_that_cannot_be_is_one_line(
    talks: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["chat", "--work", str(tmp_path), "--run", "../second"]) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: RUN='../second'")
    assert talks == []
