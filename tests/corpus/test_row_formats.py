"""Rows in each format that people have, from the files of tests/corpus/own_files and others."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from recipe.corpus import row_formats
from recipe.corpus.own_data import Row, read_file, read_rows
from recipe.errors import RecipeError
from recipe.paths import ROOT

FILES = Path(__file__).parent / "own_files"
QUESTION, ANSWER = "你是谁", "我是阿福"


def dialogue(*contents: str, system: str = "") -> Row:
    """A row of the user's and the assistant's contents in turn."""
    opening = [{"role": "system", "content": system}] if system else []
    roles = ("user", "assistant") * (len(contents) // 2)
    return {"messages": [*opening, *({"role": r, "content": c} for r, c in zip(roles, contents, strict=True))]}


WHO, NAME = dialogue(QUESTION, ANSWER), dialogue("你叫什么", ANSWER)


def write(folder: Path, row: Any, name: str = "rows.jsonl") -> Path:
    (folder / name).write_text(json.dumps(row, ensure_ascii=False), encoding="utf-8")
    return folder / name


def read(folder: Path, row: Any) -> Row:
    """The row as it is trained on."""
    (only,) = read_rows(write(folder, row))
    return only


def refusal(path: Path) -> str:
    with pytest.raises(RecipeError) as error:
        read_rows(path)
    return str(error.value).removeprefix(str(path))


# --- Files that people have ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "rows", "name_of_format"),
    [
        ("alpaca.json", [WHO], "Alpaca instruction and output"),
        ("array_named_jsonl.jsonl", [NAME, NAME], "OpenAI messages"),
        ("ndjson.ndjson", [NAME], "OpenAI messages"),
        ("sharegpt.json", [WHO], "ShareGPT conversations"),
        ("system_key.jsonl", [dialogue("你叫什么", ANSWER, system="你是海盗")], "OpenAI messages"),
        ("upper.JSONL", [NAME], "OpenAI messages"),
        ("xtuner_conv.json", [WHO], "XTuner conversation"),
    ],
)
def test_a_file_is_read_whatever_its_format(name: str, rows: list[Row], name_of_format: str) -> None:
    read = read_file(FILES / name)
    assert (read.rows, read.formats, read.left_out) == (rows, {name_of_format: len(rows)}, {})


@pytest.mark.parametrize("name", ["shop.jsonl", "identity_20_rows.jsonl", "placeholder.jsonl"])
def test_openai_s_rows_are_trained_on_as_they_stand(name: str) -> None:
    lines = (FILES / name).read_text(encoding="utf-8").splitlines()
    read = read_file(FILES / name)
    assert [json.dumps(row, ensure_ascii=False) for row in read.rows] == lines
    assert read.lines == list(range(1, len(lines) + 1))


def test_a_key_that_carries_meaning_is_refused_with_its_line_and_what_to_do() -> None:
    assert refusal(FILES / "pref.jsonl").startswith(", line 1: rejected_response: is not supported; one answer is")
    assert refusal(FILES / "extra_keys.jsonl").startswith(", line 1: tools: is not supported; tool calls are not")


@pytest.mark.parametrize("name", ["rows.jsonl.gz", "rows.JSONL.GZ", "rows.json.gz", "rows.ndjson.gz", "rows.jsonl"])
def test_a_packed_file_is_unpacked(tmp_path: Path, name: str) -> None:
    text = json.dumps([WHO]) if ".json." in name else json.dumps(WHO)
    (tmp_path / name).write_bytes(gzip.compress(text.encode()))
    assert read_rows(tmp_path / name) == [WHO]


@pytest.mark.parametrize("cut", [1, 10, 30])
def test_a_packed_file_that_ends_early_is_refused(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps(WHO).encode())[:-cut])
    assert refusal(path).startswith(": cannot be unpacked (")


@pytest.mark.parametrize("name", ["rows.JSON", "rows.Json", "rows.NDJSON", "rows.ndjson", "rows.jsonl"])
def test_an_array_is_read_in_any_of_the_files(tmp_path: Path, name: str) -> None:
    read = read_file(write(tmp_path, [WHO, NAME], name))
    assert (read.rows, read.lines) == ([WHO, NAME], [1, 1])


def test_rows_of_several_formats_may_stand_in_one_file(tmp_path: Path) -> None:
    alpaca, openai = {"instruction": QUESTION, "output": ANSWER, "id": 1}, NAME | {"id": 2, "topic": None}
    read = read_file(write(tmp_path, [alpaca, openai, openai]))
    assert read.rows == [WHO, NAME, NAME]
    assert read.formats == {"Alpaca instruction and output": 1, "OpenAI messages": 2}
    assert read.left_out == {"id": 3, "topic": 2}


# --- What each format holds ---------------------------------------------------------------------------------------

TWO = dialogue("a", "b", "c", "d", system="s")


@pytest.mark.parametrize(
    "row",
    [
        pytest.param(TWO, id="openai"),
        pytest.param({"system": "s", "messages": TWO["messages"][1:]}, id="openai, own system"),
        pytest.param({"system": "s", **TWO}, id="openai, system twice"),
        pytest.param(
            {
                "conversations": [
                    {"from": "system", "value": "s"}, {"from": "human", "value": "a"}, {"from": "gpt", "value": "b"},
                    {"from": "user", "value": "c"}, {"from": "assistant", "value": "d"},
                ]
            },
            id="sharegpt",
        ),
        pytest.param(
            {"conversation": [{"system": "s", "input": "a", "output": "b"}, {"input": "c", "output": "d"}]},
            id="xtuner",
        ),
        pytest.param(
            {"conversation": [{"system": "s", "input": "a", "output": "b"},
                              {"system": "s", "input": "c", "output": "d"}]},
            id="xtuner, system in each",
        ),
        pytest.param(
            {"instruction": "c", "input": "", "output": "d", "system": "s", "history": [["a", "b"]]}, id="alpaca"
        ),
    ],
)  # fmt: skip
def test_the_formats_say_the_same(tmp_path: Path, row: Any) -> None:
    assert read(tmp_path, row) == TWO


@pytest.mark.parametrize(
    ("row", "trained"),
    [
        ({"instruction": "译成英文：", "input": "你好", "output": "hello"}, dialogue("译成英文：\n你好", "hello")),
        ({"instruction": "a", "input": None, "output": "b", "history": None}, dialogue("a", "b")),
        ({"instruction": "", "input": "a", "output": "b"}, dialogue("a", "b")),
        ({"prompt": "a", "completion": " b"}, dialogue("a", " b")),
        ({"prompt": "a", "completion": "b", "system": "s"}, dialogue("a", "b", system="s")),
        ({"conversation": [{"system": "", "input": "a", "output": "b"}], "system": ""}, dialogue("a", "b")),
        ({"messages": WHO["messages"], "prompt": "x"}, WHO),
        ({"messages": WHO["messages"], "conversations": None}, WHO),
        ({"messages": None, "instruction": QUESTION, "output": ANSWER}, WHO),
        ({"messages": [m | {"name": None, "tool_calls": None, "weight": None} for m in WHO["messages"]]}, WHO),
    ],
)
def test_what_a_row_becomes(tmp_path: Path, row: Any, trained: Row) -> None:
    assert read(tmp_path, row) == trained


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"instruction": "a", "output": ""}, "output: is empty"),
        ({"instruction": " ", "output": "b"}, "instruction: is empty"),
        ({"instruction": "a"}, "output: missing (the row has 'instruction')"),
        ({"instruction": "a", "output": 5}, "output: must be text, not a number"),
        ({"instruction": "a", "input": ["b"], "output": "c"}, "input: must be text, not a list"),
        ({"instruction": "a", "output": "<nooutput>"}, "output: is <nooutput>, Alpaca's mark for a row without"),
        ({"instruction": "a", "output": "b", "history": "c"}, "history: must be a list of pairs"),
        ({"instruction": "a", "output": "b", "history": [["c"]]}, "history[0]: must be a pair [question, answer]"),
        ({"instruction": "a", "output": "b", "history": [["c", None]]}, "history[0][1]: must be text, not null"),
        ({"instruction": "a", "output": "b", "history": [["c", " "]]}, "history[0][1]: is empty"),
        ({"prompt": "a", "response": "b"}, "completion: missing (the row has 'prompt', 'response')"),
        ({"prompt": "a", "completion": []}, "completion: must be text, not a list"),
        ({"prompt": [{"role": "user", "content": "a"}], "completion": "b"}, "completion: must be a list of at least"),
        ({"conversations": [{"role": "user", "content": "a"}]}, "conversations[0].from: missing"),
        ({"conversations": [{"from": "gpt", "value": "a"}]}, "conversations[0].from: is 'assistant' where 'user'"),
        ({"conversations": [{"from": "tool", "value": "a"}]}, "conversations[0].from: 'tool' is none of system, human"),
        ({"conversations": [{"from": "human", "value": "\ufffd"}]}, "conversations[0].value: holds U+FFFD"),
        ({"conversation": [{"input": "a"}]}, "conversation[0].output: missing"),
        ({"conversation": [{"input": "", "output": "a"}]}, "conversation[0].input: is empty"),
        ({"conversation": {"input": "a", "output": "b"}}, "conversation: must be a list"),
        ({"conversation": [{"input": "a", "output": "b", "sep": "x"}]}, "conversation[0].sep: not supported; a turn"),
        (
            {"conversation": [{"input": "a", "output": "b"}, {"system": "s", "input": "c", "output": "d"}]},
            "conversation[1].system: a system turn can only come first",
        ),
        ({"system": 1, **WHO}, "system: must be text, not a number"),
        ({"system": "x", **TWO}, "system: is another system turn than that of messages[0].content: keep one of them"),
        ({"instruction": "a", "output": "b", **WHO}, "instruction: the row has messages as well"),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "chosen: is not supported; one answer is learnt"),
        ({"prompt": "a", "completion": "b", "label": False}, "label: is not supported; one answer is learnt"),
        ({"messages": [{"role": "tool", "content": "4"}]}, "messages[0].role: 'tool' is none of system, user, assist"),
    ],
)
def test_what_cannot_be_trained_on_is_named(tmp_path: Path, row: Any, reason: str) -> None:
    assert refusal(write(tmp_path, row)).startswith(f", line 1: {reason}")


@pytest.mark.parametrize("key", sorted(row_formats.UNSUPPORTED_KEYS))
def test_no_key_that_carries_meaning_is_left_out_in_silence(tmp_path: Path, key: str) -> None:
    for value in ([1], "x", 0.5):
        assert refusal(write(tmp_path, WHO | {key: value})).startswith(f", line 1: {key}: is not supported; ")
    assert refusal(write(tmp_path, WHO | {key.upper(): "x"})).startswith(f", line 1: {key.upper()}: is not supported; ")
    nothing: list[Any] = [None, [], {}, ""]
    for empty in nothing:  # exports of tables write these where a row lacks a column
        assert read_file(write(tmp_path, WHO | {key: empty})).left_out == {key: 1}


def test_the_name_of_a_class_is_no_preference(tmp_path: Path) -> None:
    assert read_file(write(tmp_path, WHO | {"label": "greeting"})).left_out == {"label": 1}


# --- Turns that are not learnt ------------------------------------------------------------------------------------


def learnt(row: Row) -> list[bool]:
    return ["weight" not in message for message in row["messages"] if message["role"] == "assistant"]


def with_weights(*weights: Any) -> Row:
    row = dialogue(*"abcdef")
    for message, weight in zip(row["messages"][1::2], weights, strict=True):
        message["weight"] = weight
    return row


def test_a_weight_of_0_is_carried_to_the_training(tmp_path: Path) -> None:
    row = read(tmp_path, with_weights(0, 1, 1))
    assert row["messages"][1] == {"role": "assistant", "content": "b", "weight": 0}
    assert learnt(row) == [False, True, True]
    assert read(tmp_path, with_weights(1, 1.0, 1)) == dialogue(*"abcdef")


def test_what_follows_the_last_learnt_turn_is_cut(tmp_path: Path) -> None:
    assert read(tmp_path, with_weights(1, 1, 0)) == dialogue(*"abcd")


@pytest.mark.parametrize(
    ("weights", "reason"),
    [
        ((0, 0, 0), 'messages: each assistant\'s turn has "weight": 0'),
        ((0.5, 1, 1), "messages[1].weight: must be 1, or 0"),
        ((True, 1, 1), "messages[1].weight: must be 1, or 0"),
        (("0", 1, 1), "messages[1].weight: must be 1, or 0"),
    ],
)
def test_other_weights_are_refused(tmp_path: Path, weights: Any, reason: str) -> None:
    assert refusal(write(tmp_path, with_weights(*weights))).startswith(f", line 1: {reason}")


def test_the_weight_of_a_user_s_turn_is_0_or_refused(tmp_path: Path) -> None:
    row = dialogue("a", "b")
    row["messages"][0]["weight"] = 0
    assert read(tmp_path, row) == dialogue("a", "b")
    row["messages"][0]["weight"] = 1
    assert "messages[0].weight: only what the assistant says is learnt" in refusal(write(tmp_path, row))


def test_xtuner_s_own_word_for_it_is_taken(tmp_path: Path) -> None:
    exchanges = [{"input": "a", "output": "b", "output_with_loss": False}, {"input": "c", "output": "d"}]
    assert learnt(read(tmp_path, {"conversation": exchanges})) == [False, True]


def test_of_messages_in_prompt_and_completion_the_completion_alone_is_learnt(tmp_path: Path) -> None:
    messages = dialogue(*"abcd", system="s")["messages"]
    row = read(tmp_path, {"prompt": messages[:-1], "completion": messages[-1:]})
    assert learnt(row) == [False, True]
    assert [message["content"] for message in row["messages"]] == [*"sabcd"]


def test_the_docs_list_the_formats() -> None:
    text = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    rows = {line.split("|")[1].strip(): line for line in text.splitlines() if line.startswith("| ")}
    for each in row_formats.FORMATS:
        assert all(f"`{key}`" in rows[each.name] for key in (*each.keys, *each.optional))
