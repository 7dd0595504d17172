"""The seconds of a whole run: how they are divided, and what is refused. No run is made."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from recipe.cli import main
from recipe.errors import RecipeError
from recipe.experiments import end_to_end


def _stage(folder: Path, verb: str, phases: dict[str, float]) -> Path:
    folder.mkdir(parents=True)
    manifest: dict[str, Any] = {
        "stage": verb, "key": {"settings": {}, "inputs": {}}, "inputs": {}, "outputs": {}, "results": {},
        "versions": {}, "git_commit": None, "image": None, "seconds": 1.0, "process_peak_mib": 1, "phases": phases,
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_a_stage_lasts_from_the_end_of_the_one_before(tmp_path: Path) -> None:
    folders = {
        103.0: _stage(tmp_path / "data", "data", {"import": 1.0}),
        110.0: _stage(tmp_path / "train", "train", {"steps": 5.0, "save": 1.0}),
    }
    samples = [(101.0, 0.0), (104.0, 100.0), (105.0, 50.0)]
    data, train, end = end_to_end.durations(folders, 100.0, 110.5, samples)
    assert (data.stage, data.seconds, data.busy) == ("data", 3.0, 0.0)
    assert (train.stage, train.seconds, train.busy) == ("train", 7.0, 0.75)
    assert train.phases == {"steps": 5.0, "save": 1.0, "other": 1.0}
    assert (end.stage, end.seconds, end.busy) == ("end", 0.5, None)
    lines = end_to_end.table([data, train, end]).splitlines()
    assert lines[0] == "| stage | seconds | GPU busy | import | steps | save | other |"
    assert lines[3] == "| train | 7.0 | 75% |  | 5.0 | 1.0 | 1.0 |"
    assert lines[-1] == "| all | 10.5 | 52% | 1.0 | 5.0 | 1.0 | 3.5 |"


def test_without_readings_the_gpu_is_not_measured(tmp_path: Path) -> None:
    measured = end_to_end.durations({3.0: _stage(tmp_path / "data", "data", {})}, 1.0, 4.0)
    assert "| data | 2.0 | not measured |" in end_to_end.table(measured)


def test_a_run_begins_in_a_fresh_folder_and_finds_the_downloads(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "weights").write_text("x")
    commands: list[Any] = []

    def runs(command: list[str], **_: Any) -> None:
        commands.append(command)
        work = Path(command[command.index("--work") + 1])
        assert (work / "hub" / "weights").read_text() == "x"
        assert not (work / "quickstart").exists()
        _stage(work / "models" / "miniature", "model", {})
        _stage(work / "quickstart" / "report", "report", {})

    monkeypatch.setattr(subprocess, "run", runs)
    for _ in range(2):
        measured = end_to_end.run(tmp_path, tmp_path / "bench", "miniature", "en")
    assert all(command[-2:] == ["--languages", "en"] for command in commands)
    assert {each.stage for each in measured} == {"model", "report", "end"}
    assert len(commands) == 2
    assert (tmp_path / "hub" / "weights").exists()
    kept = json.loads((tmp_path / "bench" / "end_to_end.json").read_text())
    assert [each["stage"] for each in kept] == [each.stage for each in measured]


def test_a_pipeline_that_ends_early_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: None)
    with pytest.raises(RecipeError, match="ended before its report"):
        end_to_end.run(tmp_path, tmp_path / "bench", "miniature")


@pytest.mark.parametrize(
    "words", [["end_to_end", "fast"], ["fast", "--model", "miniature"], ["fast", "--languages", "en"]]
)
def test_the_two_measurements_are_not_mixed(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "--work", str(tmp_path), *words]) == 1
    assert "end_to_end" in capsys.readouterr().err


def test_the_readings_are_of_the_gpu_that_the_run_sees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text('#!/bin/sh\nfor each; do case $each in --id=*) echo "${each#--id=}";; esac; done\nsleep 60\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(end_to_end, "gpus", lambda: ["3", "1"])
    with end_to_end._Readings() as readings:
        for _ in range(100):
            if readings.samples:
                break
            time.sleep(0.05)
    assert [percent for _, percent in readings.samples] == [3.0]
