"""Reads a user's own training data; an error names the file, the line, the field and the reason."""

from __future__ import annotations

import gzip
import json
import os
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipe.chat_format import SPECIAL
from recipe.corpus.row_formats import Turn, kind, turns_of
from recipe.errors import RecipeError

# {"messages": [{"role", "content"}]}, and "weight": 0 in an assistant's message that is not to be learnt.
Row = dict[str, list[dict[str, Any]]]

# A turn longer than this cannot fit any preset's max_length (32,768 tokens at most) and is a mistake, not a sample.
LONGEST_CONTENT = 100_000
LINES, ARRAY = (".jsonl", ".ndjson"), ".json"
_GZIP = b"\x1f\x8b"  # RFC 1952
_SPACE = re.compile(r"[ \t\r\n]*")
# Line by line every row of these files is an object, so that a list of objects can only be a whole array.
_ARRAY_OF_ROWS = re.compile(r"\s*\[\s*\{")
# Control characters that no text holds. Those that are white space in Unicode separate lines, or did once.
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f]")


@dataclass(frozen=True)
class OwnFile:
    """The rows of one file of the user's.

    Attributes:
        rows: with nothing but their messages.
        lines: of the file, on which each of them begins.
        formats: name of a format -> how many rows have it.
        left_out: keys that are not trained on -> how many rows have them.
    """

    rows: list[Row]
    lines: list[int]
    formats: dict[str, int]
    left_out: dict[str, int]


def read_rows(path: Path) -> list[Row]:
    """The rows of a file, as `read_file` reads them."""
    return read_file(path).rows


def read_file(path: Path) -> OwnFile:
    """Read conversations in any of the formats of `row_formats`.

    Every row ends with an assistant's turn, users and assistant alternate, a system turn may come first.

    Args:
        path: a .json file (an array of rows) or a .jsonl or .ndjson file (a row a line, or an array); gzip of them too.

    Raises:
        RecipeError: the file cannot be read, or a row is malformed.
    """
    read = OwnFile([], [], {}, {})
    for line, value in _values(path):
        try:
            if not isinstance(value, dict):
                raise ValueError(f"a row must be an object with messages, not {kind(value)}")
            chosen, turns, left_out = turns_of(value)
            read.rows.append(_row(turns))
        except ValueError as error:
            raise RecipeError(f"{path}, line {line}: {error}") from None
        read.lines.append(line)
        for counts, names in ((read.formats, [chosen.name]), (read.left_out, left_out)):
            for name in names:
                counts[name] = counts.get(name, 0) + 1
    if not read.rows:
        raise RecipeError(
            f"{path}: holds no rows; each one looks like "
            '{"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}'
        )
    return read


def plain_text(text: str) -> str:
    """The text for comparison: lower case, without spaces and sentence marks; signs of arithmetic stay."""
    return re.sub(r"[\s，。？！、；：,.?!;:'\"“”‘’]+", "", text).lower()


def _text(path: Path) -> str:
    """The whole file, unpacked."""
    if os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path):  # noqa: PTH110, PTH112, PTH113
        raise RecipeError(f"{path}: is a pipe or a device; DATA= takes .json and .jsonl files")  # they may never end
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise RecipeError(f"{path}: no such file; check DATA=") from None
    except IsADirectoryError:
        raise RecipeError(f"{path}: is a folder; DATA= takes .json and .jsonl files") from None
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read ({error.strerror}); check DATA=") from None
    if content.startswith(_GZIP):
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise RecipeError(f"{path}: cannot be unpacked ({error}); pack it with gzip again") from None
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise RecipeError(f"{path}, line {line}: is not UTF-8 (byte {error.start}); save the file as UTF-8") from None


def _values(path: Path) -> Iterator[tuple[int, Any]]:
    """(line number, parsed value) of every row in the file."""
    text = _text(path)
    if not text.strip():
        raise RecipeError(f"{path}: is empty")
    decoder = json.JSONDecoder(parse_constant=_no_constant)
    name = path.name.lower().removesuffix(".gz")
    if name.endswith(ARRAY) or (name.endswith(LINES) and _ARRAY_OF_ROWS.match(text)):
        yield from _array_items(path, text, decoder)
    elif name.endswith(LINES):
        for number, line_text in enumerate(text.split("\n"), 1):
            if line_text.strip():
                try:
                    yield number, decoder.decode(line_text)
                except (ValueError, RecursionError) as error:
                    raise RecipeError(f"{path}, line {number}: is not JSON: {error}") from None
    else:
        raise RecipeError(f"{path}: DATA= takes a .json or .jsonl file, or .ndjson, each also as .gz")


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


def _row(turns: Sequence[Turn]) -> Row:
    """The row with nothing but its messages. ValueError: the field, and what is wrong with it."""
    for turn in turns:
        _check(turn)
    for turn in turns[1:]:
        if turn.role == "system":
            raise ValueError(f"{turn.role_field}: a system turn can only come first")
    dialogue = turns[1:] if turns[0].role == "system" else turns
    for i, turn in enumerate(dialogue):
        wanted = ("user", "assistant")[i % 2]
        if turn.role != wanted:
            raise ValueError(f"{turn.role_field}: is {turn.role!r} where {wanted!r} must come")
    if not dialogue or dialogue[-1].role != "assistant":
        raise ValueError("messages: must end with an assistant's turn, which is what the model learns")
    learnt = [i for i, turn in enumerate(turns, 1) if turn.role == "assistant" and turn.learnt]
    if not learnt:
        raise ValueError('messages: each assistant\'s turn has "weight": 0, so nothing is learnt; remove the row')
    # What follows the last turn that is learnt would teach nothing.
    return {"messages": [_message(turn) for turn in turns[: learnt[-1]]]}


def _message(turn: Turn) -> dict[str, Any]:
    message: dict[str, Any] = {"role": turn.role, "content": turn.content}
    return message if turn.learnt else message | {"weight": 0}


def _check(turn: Turn) -> None:
    """ValueError: the content is none that can be trained on, and why."""
    field, content = turn.field, turn.content
    if not content.strip():
        raise ValueError(f"{field}: is empty")
    if len(content) > LONGEST_CONTENT:
        raise ValueError(f"{field}: has {len(content):,} characters, at most {LONGEST_CONTENT:,} can be a turn")
    if match := SPECIAL.search(content):
        raise ValueError(
            f"{field}: holds the special token {match.group()} as text, which would end or open a turn; remove it"
        )
    if any("\ud800" <= character <= "\udfff" for character in content):
        raise ValueError(f"{field}: holds half of a surrogate pair, which no UTF-8 text can; mend the escape")
    if "\ufffd" in content:
        raise ValueError(
            f"{field}: holds U+FFFD at character {content.index(chr(0xFFFD)) + 1}, which stands where a program could "
            f"not read a character; save the text as UTF-8 anew from its source"
        )
    if match := _CONTROL.search(content):
        raise ValueError(
            f"{field}: holds the control character U+{ord(match.group()):04X} at character {match.start() + 1}; "
            f"remove it"
        )
