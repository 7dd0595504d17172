"""What rows, models, hubs and file names say reaches the terminal without what would steer it."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import pytest

from recipe import cli
from recipe.pipeline import stage
from recipe.plain_text import one_line, printable

# Colour, a title, a link (OSC 8), C1's CSI, bell, backspace, and what overwrites the line that stands there.
STEERING = ("\x1b[31m", "\x1b]0;owned\x07", "\x1b]8;;http://x\x1b\\", "\x9b2J", *"\a\b\x7f\r\v\f\x85")


def steers(text: str) -> bool:
    """Whether a text holds what a terminal would obey beside line feeds and tabs."""
    return any(unicodedata.category(character) in ("Cc", "Cs") and character not in "\n\t" for character in text)


@pytest.mark.parametrize("sequence", STEERING, ids=ascii)
def test_no_sequence_steers_a_terminal(sequence: str) -> None:
    assert steers(sequence)
    assert not steers(printable(f"before{sequence}after"))
    assert "before" in printable(f"before{sequence}after")
    assert "after" in one_line(f"before{sequence}after")


def test_line_ends_stay_in_a_text_and_leave_a_line() -> None:
    assert printable("a\r\nb\n\tc") == "a\nb\n\tc"
    assert one_line("a\r\nb\n\tc") == "a\\nb\\n\tc"


def test_the_first_row_overwrites_no_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = "".join(mark for mark in STEERING if len(mark) == 1 and mark.isspace())  # what a row may hold
    rows = tmp_path / "rows.jsonl"
    messages = [{"role": "user", "content": f"who{said}\nerror: all is lost"}, {"role": "assistant", "content": "I"}]
    rows.write_text(json.dumps({"messages": messages}) + "\n", encoding="utf-8")
    assert cli.main(["data", "--name", "小明", "--data", str(rows), "--work", str(tmp_path / "work")]) == 0
    errors = capsys.readouterr().err
    assert not steers(errors)
    assert all(line.startswith("[data] ") for line in errors.splitlines())


def test_an_error_repeats_a_path_on_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = f"{tmp_path}/a\rerror: b\n[data] c.jsonl"
    assert cli.main(["data", "--name", "小明", "--data", path, "--work", str(tmp_path / "work")]) == 1
    errors = capsys.readouterr().err
    assert not steers(errors)
    assert errors.count("\n") == 1
    assert "no such file" in errors


def test_a_wrong_call_is_repeated_without_steering(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["data", "\x1b[31mred"], ["\x1b]0;title\x07"], ["chat", "--top-p", "\x9b2J"]):
        with pytest.raises(SystemExit):
            cli.main(words)
    assert not steers(capsys.readouterr().err)


def test_what_a_stage_says_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    stage.say("model", "a hub's word\r\n[model] another\x1b[2J")
    errors = capsys.readouterr().err
    assert not steers(errors)
    assert errors.count("\n") == 1


@pytest.mark.parametrize("choices", [{"name": "\ud800"}, {"model": "a\x1b[2J"}, {"set": ["lr=1", "r=\x07"]}])
def test_a_copied_run_s_file_that_holds_no_text_is_one_line(
    choices: dict[str, object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "main").mkdir()
    (tmp_path / "main" / "run.json").write_text(json.dumps(choices), encoding="utf-8")
    assert cli.main(["replay", "--work", str(tmp_path)]) == 1
    (error,) = capsys.readouterr().err.splitlines()
    assert not steers(error)
    assert f"main/run.json: {next(iter(choices))} is no text: it holds " in error
    assert "give NAME" in error
