"""Dataclasses as JSON objects and back, with every type checked.

The fields of a class are the keys of its object, in their order, but for those marked by their metadata. The object
lacks an OMITTED field that has its default. The fields of an INLINE one stand directly in the object; where the object
has none of them, the field has its default.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

Record = TypeVar("Record")

OMITTED = {"omitted": True}
INLINE = {"inline": True}

# Of each plain type, the JSON values that it takes, and what they are called. A whole number is a number too.
_PLAIN: dict[Any, tuple[tuple[type, ...], str]] = {
    float: ((float, int), "a number"),
    int: ((int,), "a whole number"),
    bool: ((bool,), "true or false"),
    str: ((str,), "a text"),
    NoneType: ((NoneType,), "null"),
}


class ShapeError(ValueError):
    """What a JSON value lacks or has wrong, as in "lacks base.counts" and "has 'x' for base.broken, not a number"."""


def to_json(record: Any) -> Any:
    """A dataclass and all in it as what the json module writes."""
    if is_dataclass(record):
        content: dict[str, Any] = {}
        for each in fields(record):
            value = getattr(record, each.name)
            if each.metadata.get("inline"):
                content |= {} if value is None else to_json(value)
            elif value != each.default or not each.metadata.get("omitted"):
                content[each.name] = to_json(value)
        return content
    if isinstance(record, Mapping):
        return {key: to_json(value) for key, value in record.items()}
    return [to_json(each) for each in record] if isinstance(record, (list, tuple)) else record


def from_json(kind: type[Record], value: Any, where: str = "") -> Record:
    """What `to_json` wrote, as the dataclass that it was. Keys that the class has no field for are left out.

    Args:
        kind: the dataclass, or a type that a field of one may have.
        value: of the json module.
        where: the value's place in its file, for errors.

    Raises:
        ShapeError: something is missing or of another type.
    """
    content: Record = _parse(kind, value, where)
    return content


@cache
def _fields(kind: type) -> list[tuple[Field[Any], Any]]:
    hints = get_type_hints(kind)
    return [(each, hints[each.name]) for each in fields(kind)]


def _parse(kind: Any, value: Any, where: str) -> Any:
    """The value as one of the types that the classes use: plain ones, lists, tuples, mappings, unions, dataclasses."""
    if kind is Any:
        return value
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return _first_that_fits(arguments, value, where)
    if is_dataclass(kind):
        return _record(kind, _checked(value, (Mapping,), "an object", where), where)
    if origin is tuple:
        parts = _checked(value, (list, tuple), "a list", where)
        if len(parts) != len(arguments):
            raise ShapeError(f"has {len(parts)} values for {where}, not {len(arguments)}")
        return tuple(
            _parse(each, part, f"{where}[{i}]") for i, (each, part) in enumerate(zip(arguments, parts, strict=True))
        )
    if origin in (list, Sequence):
        parts = _checked(value, (list, tuple), "a list", where)
        return [_parse(arguments[0], part, f"{where}[{i}]") for i, part in enumerate(parts)]
    if origin in (dict, Mapping):
        entries = _checked(value, (Mapping,), "an object", where)
        return {key: _parse(arguments[1], part, f"{where}.{key}") for key, part in entries.items()}
    types, words = _PLAIN[kind]
    if isinstance(value, bool) and kind is not bool:  # Python's bool is an int
        types = ()
    return _checked(value, types, words, where)


def _checked(value: Any, types: tuple[type, ...], words: str, where: str) -> Any:
    if not isinstance(value, types):
        raise ShapeError(f"has {str(value)[:40]!r} for {where or 'its content'}, not {words}")
    return value


def _first_that_fits(kinds: Sequence[Any], value: Any, where: str) -> Any:
    """The value as the first of the types that takes it. ShapeError: the first type's, where none does."""
    errors = []
    for kind in sorted(kinds, key=lambda kind: kind is NoneType):
        try:
            return _parse(kind, value, where)
        except ShapeError as error:
            errors.append(error)
    raise errors[0]


def _record(kind: Any, values: Mapping[str, Any], where: str) -> Any:
    arguments: dict[str, Any] = {}
    for each, hint in _fields(kind):
        place = f"{where}.{each.name}" if where else each.name
        if each.metadata.get("inline"):
            if each.default is MISSING or not _keys(hint).isdisjoint(values):
                arguments[each.name] = _parse(hint, values, where)
        elif each.name in values:
            arguments[each.name] = _parse(hint, values[each.name], place)
        elif each.default is MISSING and each.default_factory is MISSING:
            raise ShapeError(f"lacks {place}")
    try:
        return kind(**arguments)
    except ShapeError as error:  # of the class's own check
        raise ShapeError(f"{error}, in {where}" if where else str(error)) from None


def _keys(kind: Any) -> set[str]:
    """The keys of a dataclass that stands inline, or of all those in a union."""
    return {each.name for part in get_args(kind) or (kind,) if is_dataclass(part) for each in fields(part)}
