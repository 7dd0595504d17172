"""JSON files that a user, a hub or an older version may have written, read with the shape that the reader expects.

All that this recipe takes from such a file goes through here: valid JSON of another shape ends in one line as well.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, get_origin

from recipe.errors import RecipeError
from recipe.files import parse_json, read_jsonl
from recipe.paths import shown
from recipe.records import ShapeError, from_json

T = TypeVar("T")
# The remedy for files of this repository.
OF_CHECKOUT = "a file of this checkout: bring it back with git, or mend it where it is your own"


def read(path: Path, kind: type[T], remedy: str, *, shape: type | None = None) -> T:
    """Read a JSON file.

    Args:
        path: of the file.
        kind: a dataclass, or another type that `records.from_json` takes, such as dict[str, Any].
        remedy: what to do where the file cannot be read, for the error.
        shape: a dataclass that the content must fit too, where `kind` says less.

    Returns:
        The content as `kind`.

    Raises:
        FileNotFoundError: there is no such file.
        RecipeError: it is not JSON, or has another shape.
    """
    return _checked(path, lambda: _typed(parse_json(path.read_text(encoding="utf-8")), kind, shape, ""), remedy)


def read_lines(path: Path, kind: type[T], remedy: str, *, shape: type | None = None) -> list[T]:
    """Read a file of JSON lines. Arguments and errors: as in `read`, of each line."""
    return _checked(
        path,
        lambda: [_typed(value, kind, shape, f"line {i}") for i, value in enumerate(read_jsonl(path), 1)],
        remedy,
    )


def read_rows(path: Path, kind: type[T], remedy: str, *, shape: type | None = None) -> list[T]:
    """Read rows: of a .json file its list, of any other file its JSON lines. Otherwise as `read`."""
    if path.suffix != ".json":
        return read_lines(path, kind, remedy, shape=shape)
    values = read(path, list[Any], remedy)
    return _checked(path, lambda: [_typed(value, kind, shape, f"row {i}") for i, value in enumerate(values, 1)], remedy)


def _typed(value: Any, kind: type[T], shape: type | None, where: str) -> T:
    if not where and get_origin(kind) is dict and not isinstance(value, dict):
        raise ShapeError("must hold a JSON object")
    if shape is not None:
        from_json(shape, value, where)
    return from_json(kind, value, where)


def _checked(path: Path, reader: Callable[[], T], remedy: str) -> T:
    if path.exists() and not path.is_file() and not path.is_dir():
        raise RecipeError(f"{shown(path)}: is a pipe or a device: {remedy}")  # which may never end
    try:
        return reader()
    except ValueError as error:  # ShapeError, and what is no text or no JSON
        raise RecipeError(f"{shown(path)}: {error}: {remedy}") from None
