"""JSON of another shape is one line that names the file and the remedy, whatever it is."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from recipe import json_reader
from recipe.corpus.rows import read_rows
from recipe.errors import RecipeError
from recipe.files import DEEPEST, parse_json


@dataclass(frozen=True)
class Pair:
    name: str
    size: int = 0


def written(folder: Path, text: str | bytes, name: str = "x.json") -> Path:
    file = folder / name
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return file


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is not JSON"),
        ('{"name": ', "is not JSON"),
        (b"\xff\xfe", "can't decode"),
        ("[]", "must hold a JSON object"),
        ("null", "must hold a JSON object"),
        ('{"name": NaN}', "NaN is no number"),
        ('{"name": ["x"]}', "has \"['x']\" for name, not a text"),
        ('{"size": 1}', "lacks name"),
        ('{"name": "x", "size": 1.5}', "has '1.5' for size, not a whole number"),
        ('{"name": "x", "more": ' + "[" * 100_000 + "]" * 100_000 + "}", "nested too deeply"),
        ('{"name": "x", "more": ' + "[" * DEEPEST + "]" * DEEPEST + "}", "nested too deeply"),
        ('{"name": "x", "more": ' + "9" * 5000 + "}", "which is beyond any size"),
        ('{"name": "x", "more": [-' + "9" * 400 + "]}", "which is beyond any size"),
        ('{"name": "x", "more": 1e999}', "holds 1e999, which is beyond any size"),
    ],
)
def test_a_file_of_another_shape_is_one_line(text: str | bytes, reason: str, tmp_path: Path) -> None:
    file = written(tmp_path, text)
    with pytest.raises(RecipeError) as error:
        json_reader.read(file, dict[str, Any], "mend it", shape=Pair)
    message = str(error.value)
    assert message.startswith(f"{file}: ")
    assert message.endswith(": mend it")
    assert reason in message
    assert "\n" not in message


def test_what_fits_is_read_and_other_keys_stay(tmp_path: Path) -> None:
    file = written(tmp_path, '{"name": "x", "more": [[1]]}')
    assert json_reader.read(file, Pair, "") == Pair("x")
    assert json_reader.read(file, dict[str, Any], "", shape=Pair) == {"name": "x", "more": [[1]]}
    assert parse_json(str(10**30)) == 10**30  # tokenizers without a longest input say so
    assert parse_json("[" * DEEPEST + "]" * DEEPEST) is not None


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("[]", "line 2, not an object"),
        ('{"messages": {}}', "line 2.messages, not a list"),
        ('{"messages": [{"role": "user"}]}', "lacks line 2.messages[0].content"),
        (
            '{"messages": [{"role": "", "content": ""}]}',
            "has '' for role, none of system, user, assistant, in line 2.m",
        ),
        ('{"messages": [], "ended": "yes"}', "line 2.ended, not true or false"),
        ("{", "line 2 is not JSON"),
    ],
)
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json"])
def test_a_row_of_another_shape_is_named(line: str, reason: str, name: str, tmp_path: Path) -> None:
    good = '{"messages": [{"role": "user", "content": "?"}]}'
    text = f"{good}\n{line}\n" if name.endswith("l") else f"[{good}, {line}]"
    if name == "rows.json":
        reason = "is not JSON" if line == "{" else reason.replace("line", "row")
    file = written(tmp_path, text, name)
    with pytest.raises(RecipeError, match=r"rows\.json") as error:
        read_rows(file)
    assert reason in str(error.value)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.json")
    for read in (json_reader.read, json_reader.read_rows):
        with pytest.raises(RecipeError, match=r"x\.json: is a pipe or a device: mend it"):
            read(tmp_path / "x.json", dict[str, Any], "mend it")
