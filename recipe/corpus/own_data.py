"""Reads a user's own training data; an error names the file, the line, the field and the reason."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from recipe.chat_format import ROLES, SPECIAL
from recipe.errors import RecipeError

Row = dict[str, list[dict[str, str]]]

# A turn longer than this cannot fit any preset's max_length (32,768 tokens at most) and is a mistake, not a sample.
LONGEST_CONTENT = 100_000
_SPACE = re.compile(r"[ \t\r\n]*")


def read_rows(path: Path) -> list[Row]:
    """Read conversations in OpenAI's format: {"messages": [{"role", "content"}]}.

    Every row ends with an assistant's turn, users and assistant alternate, a system turn may come first.

    Args:
        path: a .json file (an array of rows) or a .jsonl file (a row a line).

    Returns:
        The rows, with nothing but their messages.

    Raises:
        RecipeError: the file cannot be read, or a row is malformed.
    """
    rows = []
    for line, value in _values(path):
        try:
            rows.append(_row(value))
        except ValueError as error:
            raise RecipeError(f"{path}, line {line}: {error}") from None
    if not rows:
        raise RecipeError(
            f"{path}: holds no rows; each one looks like "
            '{"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}'
        )
    return rows


def plain_text(text: str) -> str:
    """The text for comparison: lower case, without spaces and sentence marks; signs of arithmetic stay."""
    return re.sub(r"[\s，。？！、；：,.?!;:'\"“”‘’]+", "", text).lower()


def _values(path: Path) -> Iterator[tuple[int, Any]]:
    """(line number, parsed value) of every row in the file."""
    if os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path):  # noqa: PTH110, PTH112, PTH113
        raise RecipeError(f"{path}: is a pipe or a device; DATA= takes .json and .jsonl files")  # they may never end
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise RecipeError(f"{path}: no such file; check DATA=") from None
    except IsADirectoryError:
        raise RecipeError(f"{path}: is a folder; DATA= takes .json and .jsonl files") from None
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read ({error.strerror}); check DATA=") from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise RecipeError(f"{path}, line {line}: is not UTF-8 (byte {error.start}); save the file as UTF-8") from None
    if not text.strip():
        raise RecipeError(f"{path}: is empty")
    decoder = json.JSONDecoder(parse_constant=_no_constant)
    if path.suffix == ".jsonl":
        for number, line_text in enumerate(text.split("\n"), 1):
            if line_text.strip():
                try:
                    yield number, decoder.decode(line_text)
                except (ValueError, RecursionError) as error:
                    raise RecipeError(f"{path}, line {number}: is not JSON: {error}") from None
    elif path.suffix == ".json":
        yield from _array_items(path, text, decoder)
    else:
        raise RecipeError(f"{path}: DATA= takes a .json or .jsonl file")


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _array_items(path: Path, text: str, decoder: json.JSONDecoder) -> Iterator[tuple[int, Any]]:
    """(line number, parsed value) of every item of a JSON array: json.loads would not give the line numbers."""

    def skip(position: int) -> int:
        match = _SPACE.match(text, position)
        assert match
        return match.end()

    def fail(position: int, reason: str) -> RecipeError:
        return RecipeError(f"{path}, line {text.count(chr(10), 0, position) + 1}: {reason}")

    position = skip(0)
    if text[position] != "[":
        raise fail(position, "is not a JSON array of rows; one row a line goes into a .jsonl file")
    position = skip(position + 1)
    line, counted = 1, 0
    if text[position : position + 1] == "]":
        return
    while True:
        line, counted = line + text.count("\n", counted, position), position
        try:
            value, position = decoder.raw_decode(text, position)
        except json.JSONDecodeError as error:
            at_end = error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated")
            raise fail(
                error.pos, "the file ends in the middle of a row" if at_end else f"is not JSON: {error.msg}"
            ) from None
        except (ValueError, RecursionError) as error:
            raise fail(position, f"is not JSON: {error}") from None
        yield line, value
        position = skip(position)
        mark = text[position : position + 1]
        if mark == "]":
            if text[position + 1 :].strip():
                raise fail(position, "text follows the end of the array")
            return
        if mark != ",":
            raise fail(min(position, len(text) - 1), "the file ends in the middle of the array" if not mark else
                       f"expected ',' or ']' after a row, found {mark!r}")  # fmt: skip
        position = skip(position + 1)


def _row(value: Any) -> Row:
    """The row with nothing but its messages. ValueError: the field, and what is wrong with it."""
    if not isinstance(value, dict):
        raise ValueError(f"a row must be an object with messages, not {_kind(value)}")
    if "messages" not in value:
        raise ValueError(f"messages: missing (the row has {_short(', '.join(map(repr, value))) or 'nothing'})")
    messages = value["messages"]
    if not isinstance(messages, list) or not messages:
        raise ValueError("messages: must be a list of at least one user's and one assistant's turn")
    turns = [_message(f"messages[{i}]", message) for i, message in enumerate(messages)]
    roles = [turn["role"] for turn in turns]
    for i, role in enumerate(roles[1:], 1):
        if role == "system":
            raise ValueError(f"messages[{i}].role: a system turn can only come first")
    dialogue = roles[1:] if roles[0] == "system" else roles
    for i, role in enumerate(dialogue):
        wanted = ("user", "assistant")[i % 2]
        if role != wanted:
            raise ValueError(f"messages[{i + len(roles) - len(dialogue)}].role: is {role!r} where {wanted!r} must come")
    if not dialogue or dialogue[-1] != "assistant":
        raise ValueError("messages: must end with an assistant's turn, which is what the model learns")
    return {"messages": turns}


def _message(field: str, message: Any) -> dict[str, str]:
    if not isinstance(message, dict):
        raise ValueError(f"{field}: must be an object with role and content, not {_kind(message)}")
    for key in ("role", "content"):
        if key not in message:
            raise ValueError(f"{field}.{key}: missing")
        if not isinstance(message[key], str):
            raise ValueError(f"{field}.{key}: must be text, not {_kind(message[key])}")
    if unknown := sorted(set(message) - {"role", "content"}):
        raise ValueError(f"{field}.{_short(repr(unknown[0])[1:-1])}: not supported; a turn has a role and a content")
    role, content = message["role"], message["content"]
    if role not in ROLES:
        raise ValueError(f"{field}.role: {_short(repr(role))} is none of {', '.join(ROLES)}")
    if not content.strip():
        raise ValueError(f"{field}.content: is empty")
    if len(content) > LONGEST_CONTENT:
        raise ValueError(f"{field}.content: has {len(content):,} characters, at most {LONGEST_CONTENT:,} can be a turn")
    if match := SPECIAL.search(content):
        raise ValueError(
            f"{field}.content: holds the special token {match.group()} as text, which would end or open a turn; "
            f"remove it"
        )
    if any("\ud800" <= character <= "\udfff" for character in content):
        raise ValueError(f"{field}.content: holds half of a surrogate pair, which no UTF-8 text can; mend the escape")
    return {"role": role, "content": content}


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:60]}…"


def _kind(value: Any) -> str:
    return {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}.get(
        type(value), "a number"
    )
