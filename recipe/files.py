"""Small files, written and read in one way: JSON, JSON lines, and what must never be seen half-written."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def write_atomically(path: Path, text: str) -> None:
    """Write the file beside its place and rename it, so that a reader sees the old content or the new, never a part."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def json_text(content: object) -> str:
    """The content as it stands in this recipe's JSON files."""
    return json.dumps(content, ensure_ascii=False, indent=2) + "\n"


def write_json(path: Path, content: object) -> None:
    """Write a JSON file of a folder that is not complete yet."""
    path.write_text(json_text(content), encoding="utf-8")


def jsonl_text(rows: Iterable[Any]) -> str:
    """The rows as JSON lines."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def read_jsonl(path: Path) -> list[Any]:
    """The rows of a file of JSON lines. Only a line feed ends a line: texts may hold Unicode's other separators."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
