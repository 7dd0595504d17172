"""Names hold no character that nobody sees; what people's names need is taken, and rows and questions hold anything."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from recipe import cli
from recipe.corpus.identity import Identity
from recipe.plain_text import flaw, hidden

HIDDEN = {
    "a right-to-left override": ("小\u202e明", "U+202E (RIGHT-TO-LEFT OVERRIDE) at character 2"),
    "a space of no width": ("Li\u200bLei", "U+200B (ZERO WIDTH SPACE) at character 3"),
    "an isolate": ("\u2066Lei", "U+2066 (LEFT-TO-RIGHT ISOLATE) at character 1"),
    "a byte order mark": ("小明\ufeff", "U+FEFF (ZERO WIDTH NO-BREAK SPACE) at character 3"),
    "a soft hyphen": ("Li\u00adLei", "U+00AD (SOFT HYPHEN) at character 3"),
    "a word joiner": ("Li\u2060Lei", "U+2060 (WORD JOINER) at character 3"),
    "a filler": ("小\u3164明", "U+3164 (HANGUL FILLER) at character 2"),
    "a tag without a flag": ("小明\U000e0041", "U+E0041 (TAG LATIN CAPITAL LETTER A) at character 3"),
    "a joiner between Latin letters": ("Li\u200dLei", "U+200D (ZERO WIDTH JOINER) at character 3"),
    "a joiner between Chinese characters": ("小\u200c明", "U+200C (ZERO WIDTH NON-JOINER) at character 2"),
    "two joiners": ("علی\u200c\u200cرضا", "U+200C (ZERO WIDTH NON-JOINER) at character 5"),
}
NEEDED = {
    "Persian": "علی\u200cرضا",
    "Hindi": "रक्\u200dषा",
    "Malayalam, at the end": "അവന്\u200d",
    "Sinhala": "ශ්\u200dරී",
    "an emoji sequence": "\U0001f469\U0001f3fd\u200d\U0001f4bb",
    "an emoji with a variation selector": "\U0001f3f3\ufe0f\u200d\U0001f308",
    "a flag of tags": "\U0001f3f4\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",
    "combining marks": "Jose\u0301",
    "Vietnamese": "Nguyê\u0303n",
    "Hebrew": "דוד",
    "Chinese": "小明",
}


@pytest.mark.parametrize(("name", "message"), HIDDEN.values(), ids=HIDDEN)
def test_a_name_with_what_nobody_sees_is_refused_by_one_line(
    name: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work = ["--work", str(tmp_path)]
    for variable, options in {
        "NAME": ["--name", name],
        "ASSISTANT": ["--name", "小明", "--assistant", name],
        "AUTHOR": ["--name", "小明", "--author", name],
        "RUN": ["--name", "小明", "--run", name],
    }.items():
        assert cli.main(["data", *options, *work]) == 1
        error = capsys.readouterr().err
        assert error.startswith(f"error: {variable}")
        assert message in error
        assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", NEEDED.values(), ids=NEEDED)
def test_what_names_need_is_taken(name: str) -> None:
    assert hidden(name) is None
    assert Identity(name, name, name).name == name


def test_rows_and_questions_hold_any_of_these(tmp_path: Path) -> None:
    assert [flaw(name) for name, _ in HIDDEN.values()] == [None] * len(HIDDEN)
    row = {"messages": [{"role": "user", "content": "a\u202eb?"}, {"role": "assistant", "content": "\u200bc\u2066"}]}
    file = tmp_path / "own.jsonl"
    file.write_text(json.dumps(row) + "\n", encoding="utf-8")
    options = ["--name", "小明", "--data", str(file), "--model", "miniature", "--work", str(tmp_path / "work")]
    assert cli.main(["data", *options]) == 0
    written = (tmp_path / "work" / "main" / "data").glob("*.jsonl")
    assert any("a\u202eb?" in file.read_text(encoding="utf-8") for file in written)
