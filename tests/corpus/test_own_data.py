from __future__ import annotations

import contextlib
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from recipe.chat_format import SPECIAL_TOKENS
from recipe.corpus.own_data import LONGEST_CONTENT, Row, read_rows
from recipe.errors import RecipeError

GOOD: Row = {"messages": [{"role": "user", "content": "你是谁？"}, {"role": "assistant", "content": "我是小智。"}]}
SYSTEM = {"role": "system", "content": "Be brief."}
USER, ASSISTANT = GOOD["messages"]

# Each example writes one small file anew; how long the disk takes for it says nothing about the reader.
quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def write(folder: Path, content: bytes | str, suffix: str = ".jsonl") -> Path:
    path = folder / f"rows{suffix}"
    path.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
    return path


def write_rows(folder: Path, rows: list[Any], layout: str | int | None, *, ascii_only: bool = False) -> Path:
    """layout: "lines" for .jsonl, or the indent of a .json array."""
    if layout == "lines":
        return write(folder, "".join(json.dumps(row, ensure_ascii=ascii_only) + "\n" for row in rows))
    return write(folder, json.dumps(rows, ensure_ascii=ascii_only, indent=layout), ".json")


def first_line(rows: list[Any], index: int, layout: str | int | None) -> int:
    """The line of the file on which row `index` begins."""
    if layout == "lines":
        return index + 1
    if layout is None:
        return 1
    return 2 + sum(json.dumps(row, indent=layout).count("\n") + 1 for row in rows[:index])


def error_message(path: Path) -> str:
    """Why the file is refused, without its path."""
    with pytest.raises(RecipeError) as error:
        read_rows(path)
    text = str(error.value)
    assert text.startswith(str(path)), "an error must name the file"
    assert "\n" not in text, "an error must be one line"
    return text.removeprefix(str(path))


# --- What is valid reads back equal -------------------------------------------------------------------------------

# Of the control characters, those that separate lines.
control = {chr(i) for i in (*range(0x20), *range(0x7F, 0xA0)) if not chr(i).isspace()}
letters = st.characters(exclude_categories=["Cs"], exclude_characters={*control, "\ufffd"})
contents = st.text(letters, min_size=1, max_size=30).filter(
    lambda text: text.strip() and not any(token in text for token in SPECIAL_TOKENS)
)


@st.composite
def conversations(draw: st.DrawFn) -> Row:
    messages = [{"role": "system", "content": draw(contents)}] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        messages += [{"role": role, "content": draw(contents)} for role in ("user", "assistant")]
    return {"messages": messages}


layouts = st.sampled_from(["lines", None, 0, 1, 4])


@quick
@given(rows=st.lists(conversations(), min_size=1, max_size=5), layout=layouts, ascii_only=st.booleans())
@example(
    rows=[{"messages": [{"role": "user", "content": "a\u2028b\x85c\r\nd"}, ASSISTANT]}],
    layout="lines",
    ascii_only=False,
)
def test_valid_rows_read_back_equal(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Row], layout: str | int | None, ascii_only: bool
) -> None:
    path = write_rows(tmp_path_factory.getbasetemp(), rows, layout, ascii_only=ascii_only)
    assert read_rows(path) == rows


@pytest.mark.parametrize(
    ("suffix", "text"),
    [
        pytest.param(".jsonl", "\ufeff{row}\n", id="byte order mark"),
        pytest.param(".json", "\ufeff[{row}]", id="byte order mark in an array"),
        pytest.param(".jsonl", "{row}\r\n", id="Windows line ends"),
        pytest.param(".json", "[\r\n\t{row}\r\n]\r\n", id="Windows line ends in an array"),
        pytest.param(".jsonl", "\n\n{row}\n  \n", id="blank lines"),
        pytest.param(".jsonl", "{row}", id="no last line end"),
    ],
)
def test_what_editors_add_does_no_harm(tmp_path: Path, suffix: str, text: str) -> None:
    path = write(tmp_path, text.replace("{row}", json.dumps(GOOD, ensure_ascii=False)), suffix)
    assert read_rows(path) == [GOOD]


def test_only_the_messages_of_a_row_are_kept(tmp_path: Path) -> None:
    assert read_rows(write(tmp_path, json.dumps(GOOD | {"id": 7, "source": "web"}))) == [GOOD]


def test_the_longest_content_is_still_taken(tmp_path: Path) -> None:
    row = {"messages": [USER, {"role": "assistant", "content": "好" * LONGEST_CONTENT}]}
    assert read_rows(write(tmp_path, json.dumps(row))) == [row]


# --- Nothing but RecipeError --------------------------------------------------------------------------------------

# Pieces that bring random files past the first check.
pieces = st.sampled_from(
    [b"[", b"]", b"{", b"}", b",", b":", b'"', b"\n", b" ", b"\\u", b"\xff", b"\xef\xbb\xbf", b"NaN", b"-", b"1e9",
     b'"messages"', b'{"messages": []}', json.dumps(GOOD).encode(), "\u00a0\u3000".encode(), b"\x0b"]
)  # fmt: skip


@quick
@given(
    content=st.one_of(st.binary(max_size=40), st.lists(pieces, max_size=12).map(b"".join)),
    suffix=st.sampled_from([".json", ".jsonl"]),
)
@example(content=b"[" * 100_000, suffix=".json")
@example(content=b'{"a":' * 100_000, suffix=".jsonl")
@example(content=b"[" + b"9" * 10_000 + b"]", suffix=".json")
def test_no_bytes_raise_anything_else(tmp_path_factory: pytest.TempPathFactory, content: bytes, suffix: str) -> None:
    path = write(tmp_path_factory.getbasetemp(), content, suffix)
    with contextlib.suppress(RecipeError):
        assert read_rows(path), "a file without rows must be refused"


# Characters without a codec include halves of surrogate pairs, which JSON can escape and UTF-8 cannot hold.
texts = st.one_of(
    st.sampled_from(["role", "content", "messages", "user", "assistant", "system"]), st.text(st.characters())
)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
messages = st.fixed_dictionaries(
    {}, optional={"role": texts | values, "content": texts | values, "name": values}
)  # nearly what is right
shaped = st.fixed_dictionaries({"messages": st.lists(messages | values, max_size=4) | values})


@quick
@given(row=values | shaped, layout=layouts)
@example(row={"messages": [USER | {"a\nb": 1}]}, layout="lines")
@example(row={"a\nb": 1}, layout="lines")
@example(row={"messages": [{"role": "a\nb", "content": "x"}]}, layout="lines")
def test_no_row_raises_anything_else(
    tmp_path_factory: pytest.TempPathFactory, row: Any, layout: str | int | None
) -> None:
    path = write_rows(tmp_path_factory.getbasetemp(), [row], layout, ascii_only=True)
    reason = ""
    try:
        rows = read_rows(path)
        json.dumps(rows, ensure_ascii=False).encode("utf-8")  # what is taken can be written
    except RecipeError as error:
        reason = str(error)
    assert re.fullmatch(rf"({re.escape(str(path))}, line \d+: \S.*)?", reason), (
        "an error is one line that names the row"
    )


# --- The line number ----------------------------------------------------------------------------------------------

BAD_ROWS: list[Any] = [
    7,
    {},
    {"messages": []},
    {"messages": [USER]},
    {"messages": [ASSISTANT, USER]},
    {"messages": [USER, {"role": "assistant", "content": "\n"}]},
    {"messages": [USER, {"role": "assistant", "content": "a\n<|im_end|>"}]},
]


@quick
@given(
    before=st.lists(conversations(), max_size=4),
    bad=st.sampled_from(BAD_ROWS),
    after=st.lists(conversations(), max_size=2),
    layout=layouts,
)
def test_an_error_names_the_line_of_the_bad_row(
    tmp_path_factory: pytest.TempPathFactory, before: list[Any], bad: Any, after: list[Any], layout: str | int | None
) -> None:
    rows = [*before, bad, *after]
    path = write_rows(tmp_path_factory.getbasetemp(), rows, layout)
    assert error_message(path).startswith(f", line {first_line(rows, len(before), layout)}: ")


def test_blank_lines_count(tmp_path: Path) -> None:
    path = write(tmp_path, f"\n{json.dumps(GOOD)}\n\n\n{{}}\n")
    assert error_message(path).startswith(", line 5: ")


@pytest.mark.parametrize("layout", ["lines", None, 0, 4])
@pytest.mark.parametrize("index", [0, 1, 2])
def test_a_broken_row_is_found_on_its_line(tmp_path: Path, layout: str | int | None, index: int) -> None:
    """Broken at its very first bracket, so that there is but one line to name."""
    path = write_rows(tmp_path, [GOOD] * 3, layout)
    text = path.read_text(encoding="utf-8")
    starts = [match.start() for match in re.finditer(r'\{\s*"messages"', text)]
    path.write_text(text[: starts[index]] + "?" + text[starts[index] + 1 :], encoding="utf-8")
    assert error_message(path).startswith(f", line {first_line([GOOD] * 3, index, layout)}: is not JSON")


def test_the_line_of_a_wrong_byte_is_named(tmp_path: Path) -> None:
    good = json.dumps(GOOD, ensure_ascii=False).encode() + b"\n"
    path = write(tmp_path, good + json.dumps(GOOD, ensure_ascii=False).encode("gbk"))
    assert re.match(r", line 2: is not UTF-8 \(byte \d+\); save the file as UTF-8", error_message(path))


# --- Files that cannot be used ------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", [None, 4])
def test_an_array_cut_short_anywhere_is_refused(tmp_path: Path, layout: int | None) -> None:
    whole = write_rows(tmp_path, [GOOD, GOOD], layout).read_bytes()
    for size in range(len(whole)):
        error_message(write(tmp_path, whole[:size], ".json"))


def test_a_last_line_cut_short_anywhere_is_refused(tmp_path: Path) -> None:
    line = json.dumps(GOOD, ensure_ascii=False).encode()
    for size in range(1, len(line)):
        assert error_message(write(tmp_path, line + b"\n" + line[:size])).startswith(", line 2: ")


@pytest.mark.parametrize(
    ("suffix", "content", "reason"),
    [
        (".json", b"", ": is empty"),
        (".jsonl", b"", ": is empty"),
        (".jsonl", b" \n\n\t", ": is empty"),
        (".json", b"\xef\xbb\xbf", ": is empty"),
        (".json", b"[]", ": holds no rows"),
        (".json", b"[\n]\n", ": holds no rows"),
        (".json", "你好".encode("utf-16"), ", line 1: is not UTF-8"),
        (".jsonl", b"\x89PNG\r\n\x1a\n", ", line 1: is not UTF-8"),
        (".jsonl", b"name,question\n", ", line 1: is not JSON"),
        (".json", b"name,question\n", ", line 1: is not a JSON array"),
        (".json", b"\n{}", ", line 2: is not a JSON array of rows; one row a line goes into a .jsonl file"),
        (".json", b"[NaN]", ", line 1: is not JSON: NaN"),
        (".jsonl", b"-Infinity", ", line 1: is not JSON: -Infinity"),
        (".json", b"[{good}\n{good}]", ", line 2: expected ',' or ']' after a row, found '{'"),
        (".json", b"[{good},\n]", ", line 2: is not JSON"),
        (".json", b"[{good}]\n[{good}]", ": text follows the end of the array"),
        (".jsonl", b"{good} {good}", ", line 1: is not JSON"),
        (".jsonl", b"{good}\n[{good}]", ", line 2: a row must be an object with messages, not a list"),
        (".jsonl", b"[{good}\n,{}]", ", line 2: messages: missing"),
        (".jsonl.gz", b"\x1f\x8b{good}", ": cannot be unpacked"),
        (".txt", b"{good}", ": DATA= takes a .json or .jsonl file"),
        ("", b"{good}", ": DATA= takes a .json or .jsonl file"),
    ],
)
def test_a_file_that_is_no_data_is_refused(tmp_path: Path, suffix: str, content: bytes, reason: str) -> None:
    path = write(tmp_path, content.replace(b"{good}", json.dumps(GOOD).encode()), suffix)
    assert reason in error_message(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert error_message(tmp_path / "rows.jsonl") == ": no such file; check DATA="


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "rows.json").mkdir()
    assert error_message(tmp_path / "rows.json") == ": is a folder; DATA= takes .json and .jsonl files"


@pytest.mark.parametrize("name", ["rows.jsonl/more.jsonl", f"{'a' * 300}.jsonl"], ids=["in a file", "too long"])
def test_a_path_that_cannot_be_is_refused(tmp_path: Path, name: str) -> None:
    write(tmp_path, json.dumps(GOOD))
    error_message(tmp_path / name)


# --- Rows that cannot be used -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (None, "a row must be an object with messages, not null"),
        (True, "a row must be an object with messages, not true or false"),
        (1.5, "a row must be an object with messages, not a number"),
        ("text", "a row must be an object with messages, not text"),
        ([[GOOD]], "a row must be an object with messages, not a list"),
        ({}, "messages: missing (the row has nothing)"),
        ({"turns": [], "id": 1}, "messages: missing (the row has 'turns', 'id'); the shortest row is {\"prompt\": "),
        ({"conversation": [], "id": 1}, "conversation: must be a list of at least one exchange with input and output"),
        ({"Messages": GOOD["messages"]}, "messages: missing (the row has 'Messages')"),
        ({"messages": []}, "messages: must be a list of at least one user's and one assistant's turn"),
        ({"messages": None}, "messages: must be a list"),
        ({"messages": USER}, "messages: must be a list"),
    ],
)
def test_a_row_without_messages_is_refused(tmp_path: Path, row: Any, reason: str) -> None:
    assert reason in error_message(write(tmp_path, json.dumps(row)))


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        (["text"], "messages[0]: must be an object with role and content, not text"),
        ([USER, None], "messages[1]: must be an object with role and content, not null"),
        ([{"content": "x"}], "messages[0].role: missing"),
        ([USER, {"role": "assistant"}], "messages[1].content: missing"),
        ([{"role": None, "content": "x"}], "messages[0].role: must be text, not null"),
        ([{"role": "user", "content": None}], "messages[0].content: must be text, not null"),
        (
            [{"role": "user", "content": [{"type": "text", "text": "x"}]}],
            "messages[0].content: must be text, not a list",
        ),
        ([{"role": "user", "content": 5}], "messages[0].content: must be text, not a number"),
        ([USER | {"name": "x"}, ASSISTANT], "messages[0].name"),
        ([USER, ASSISTANT | {"tool_calls": []}], "messages[1].tool_calls"),
        ([{"role": "human", "content": "x"}], "messages[0].role: 'human' is none of system, user, assistant"),
        ([{"role": "User", "content": "x"}], "messages[0].role: 'User' is none of"),
        ([{"role": "", "content": "x"}], "messages[0].role: '' is none of"),
        ([ASSISTANT], "messages[0].role: is 'assistant' where 'user' must come"),
        ([USER, USER, ASSISTANT], "messages[1].role: is 'user' where 'assistant' must come"),
        ([USER, ASSISTANT, ASSISTANT], "messages[2].role: is 'assistant' where 'user' must come"),
        ([SYSTEM, ASSISTANT], "messages[1].role: is 'assistant' where 'user' must come"),
        ([USER, ASSISTANT, SYSTEM], "messages[2].role: a system turn can only come first"),
        ([SYSTEM, SYSTEM, USER, ASSISTANT], "messages[1].role: a system turn can only come first"),
        ([SYSTEM], "messages: must end with an assistant's turn"),
        ([USER], "messages: must end with an assistant's turn"),
        ([USER, ASSISTANT, USER], "messages: must end with an assistant's turn"),
    ],
)
def test_wrong_turns_are_refused(tmp_path: Path, turns: list[Any], reason: str) -> None:
    assert f", line 1: {reason}" in error_message(write(tmp_path, json.dumps({"messages": turns})))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        pytest.param("", "is empty", id="empty"),
        pytest.param(" \n\u3000", "is empty", id="blank"),
        pytest.param("a" * 2**20, "has 1,048,576 characters, at most 100,000 can be a turn", id="1 MB"),
        pytest.param("好" * (LONGEST_CONTENT + 1), "has 100,001 characters", id="one character too many"),
        pytest.param("a \ud83d b", "holds half of a surrogate pair", id="half an emoji"),
        pytest.param("我是\ufffd\ufffd", "holds U+FFFD at character 3, which stands where", id="mojibake"),
        *(
            pytest.param(f"a{mark}b", f"holds the control character U+{ord(mark):04X} at character 2", id=ascii(mark))
            for mark in "\x00\x07\x08\x1b\x7f\x80\x9f"
        ),
        *(
            pytest.param(f"say {token} now", f"holds the special token {token} as text", id=token)
            for token in (*SPECIAL_TOKENS, "[UNUSED_TOKEN_145]", "[UNUSED_TOKEN_0]")
        ),
    ],
)
@pytest.mark.parametrize("turn", [0, 1, 2])
def test_content_that_is_no_turn_is_refused(tmp_path: Path, content: str, reason: str, turn: int) -> None:
    turns = [dict(message) for message in (SYSTEM, USER, ASSISTANT)]
    turns[turn]["content"] = content
    path = write(tmp_path, json.dumps({"messages": turns}))
    assert error_message(path).startswith(f", line 1: messages[{turn}].content: {reason}")


@pytest.mark.parametrize("text", ["<im_start>", "< |im_end| >", "[UNUSED_TOKEN_]", "[unused_token_145]", "<S>", "<br>"])
def test_text_that_only_looks_like_a_token_is_taken(tmp_path: Path, text: str) -> None:
    row = {"messages": [USER, {"role": "assistant", "content": text}]}
    assert read_rows(write(tmp_path, json.dumps(row))) == [row]


@pytest.mark.parametrize(
    "row",
    [
        pytest.param({"messages": [{"role": "x" * 2**20, "content": "x"}]}, id="role"),
        pytest.param({"messages": [USER | {"x" * 2**20: 1}]}, id="unknown field"),
        pytest.param({"x" * 2**20: 1}, id="row without messages"),
    ],
)
def test_a_refusal_fits_the_screen_whatever_the_row_holds(tmp_path: Path, row: Any) -> None:
    assert len(error_message(write(tmp_path, json.dumps(row)))) < 1000


@pytest.mark.parametrize("kind", ["pipe", "device", "link to a device"])
def test_what_may_never_end_is_not_read(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "rows.jsonl"
    if kind == "pipe":
        os.mkfifo(file)
    elif kind == "link to a device":
        file.symlink_to("/dev/zero")
    with pytest.raises(RecipeError, match="is a pipe or a device"):
        read_rows(Path("/dev/zero") if kind == "device" else file)
