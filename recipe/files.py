"""Small files, written and read in one way: JSON, JSON lines, and what must never be seen half-written."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

# Levels of lists and objects. Nothing that this recipe reads has more than a dozen; Python's own limit is its stack's.
DEEPEST = 64


def write_atomically(path: Path, text: str) -> None:
    """Write the file beside its place and rename it, so that a reader sees the old content or the new, never a part."""
    partial = path.with_name(f".{path.name}.partial")
    if partial.is_symlink():  # as a copied run folder may hold it: what it points to is not this file's
        partial.unlink(missing_ok=True)
    with open(partial, "w", encoding="utf-8", opener=not_through_links) as file:
        file.write(text)
    partial.replace(path)


def not_through_links(path: str, flags: int) -> int:
    """An opener, as `open` takes it, that raises OSError (ELOOP) where the file is a link."""
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


def json_text(content: object) -> str:
    """The content as it stands in this recipe's JSON files."""
    return json.dumps(content, ensure_ascii=False, indent=2) + "\n"


def write_json(path: Path, content: object) -> None:
    """Write a JSON file of a folder that is not complete yet."""
    path.write_text(json_text(content), encoding="utf-8")


def jsonl_text(rows: Iterable[Any]) -> str:
    """The rows as JSON lines."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def parse_json(text: str | bytes) -> Any:
    """Parse JSON from outside.

    Args:
        text: all of a file, a line of it, or the body of a request.

    Returns:
        The value.

    Raises:
        UnicodeDecodeError: bytes are no text in UTF-8, nor in the others that JSON may have.
        ValueError: it is not JSON, or nested so deeply that no file of this recipe, or of a model, is; or a number is
            beyond what a float holds, so that reading it would give infinity.
    """
    try:
        value = json.loads(text, parse_constant=_refuse_constant, parse_float=_finite, parse_int=_whole)
    except RecursionError:
        raise ValueError("is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"is not JSON ({error})") from None
    level = [value]
    for _ in range(DEEPEST):
        level = [child for each in level for child in _children(each) if isinstance(child, (dict, list))]
        if not level:
            return value
    raise ValueError("is nested too deeply")


def _children(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def _refuse_constant(name: str) -> None:
    raise ValueError(f"is not JSON ({name} is no number)")


def _finite(digits: str) -> float:
    if math.isinf(number := float(digits)):
        raise ValueError(f"holds {digits[:20]}, which is beyond any size")
    return number


def _whole(digits: str) -> int:
    _finite(digits)
    return int(digits)


def read_jsonl(path: Path) -> list[Any]:
    """The rows of a file of JSON lines. Only a line feed ends a line: texts may hold Unicode's other separators.

    Raises:
        ValueError: a line is not JSON; the error names it.
    """
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        if line:
            try:
                rows.append(parse_json(line))
            except ValueError as error:
                raise ValueError(f"line {number} {error}") from None
    return rows
