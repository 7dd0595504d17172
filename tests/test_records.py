"""Dataclasses come back from JSON as they were, and what has another shape is named by its place."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from recipe.records import INLINE, OMITTED, ShapeError, from_json, to_json


@dataclass(frozen=True)
class Inner:
    value: float
    pair: tuple[float, int]


@dataclass(frozen=True)
class Left:
    left: str


@dataclass(frozen=True)
class Right:
    right: bool


@dataclass(frozen=True)
class Outer:
    name: str | None
    inner: Inner = field(metadata=INLINE)
    sides: Sequence[Left | Right]
    named: Mapping[str, Inner]
    count: int = 3
    note: str | None = field(default=None, metadata=OMITTED)


@dataclass(frozen=True)
class Optional:
    name: str
    inner: Inner | None = field(default=None, metadata=INLINE)
    taught: bool = field(default=True, metadata=OMITTED)


OUTER = Outer(None, Inner(1, (0.5, 2)), [Left("l"), Right(True)], {"x": Inner(0.25, (0, 1))})
CONTENT = {
    "name": None, "value": 1, "pair": [0.5, 2], "sides": [{"left": "l"}, {"right": True}],
    "named": {"x": {"value": 0.25, "pair": [0, 1]}}, "count": 3,
}  # fmt: skip


def test_a_class_is_its_object_in_the_order_of_its_fields_and_back() -> None:
    assert json.dumps(to_json(OUTER)) == json.dumps(CONTENT)
    assert from_json(Outer, json.loads(json.dumps(CONTENT))) == OUTER


def test_what_may_be_absent_is_written_only_where_it_is_something() -> None:
    assert "note" not in to_json(OUTER)
    assert from_json(Outer, CONTENT | {"note": "n", "newer": 1}).note == "n"
    assert from_json(Outer, {key: value for key, value in CONTENT.items() if key != "count"}) == OUTER


def test_what_may_be_absent_inline_is_there_as_a_whole_or_not_at_all() -> None:
    for record, content in (
        (Optional("n"), {"name": "n"}),
        (Optional("n", Inner(1, (0.5, 2)), taught=False), {"name": "n", "value": 1, "pair": [0.5, 2], "taught": False}),
    ):
        assert json.dumps(to_json(record)) == json.dumps(content)
        assert from_json(Optional, content) == record
    with pytest.raises(ShapeError, match=r"^lacks f\.pair$"):
        from_json(Optional, {"name": "n", "value": 1}, "f")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"name": 1}, "has '1' for f.name, not a text"),
        ({"value": "1"}, "has '1' for f.value, not a number"),
        ({"value": True}, "has 'True' for f.value, not a number"),
        ({"count": 3.5}, "has '3.5' for f.count, not a whole number"),
        ({"count": None}, "has 'None' for f.count, not a whole number"),
        ({"pair": [1.0]}, "has 1 values for f.pair, not 2"),
        ({"pair": [1.0, 0.5]}, r"has '0.5' for f.pair\[1\], not a whole number"),
        ({"sides": {}}, r"has '\{\}' for f.sides, not a list"),
        ({"sides": [{"left": "l"}, {"left": 2}]}, r"has '2' for f.sides\[1\].left, not a text"),
        ({"sides": [{}]}, r"lacks f.sides\[0\].left"),
        ({"named": {"x": {"value": 1}}}, "lacks f.named.x.pair"),
        ({"named": {"x": []}}, r"has '\[\]' for f.named.x, not an object"),
        ({"named": []}, r"has '\[\]' for f.named, not an object"),
    ],
)
def test_another_shape_is_named_by_its_place(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ShapeError, match=f"^{message}$"):
        from_json(Outer, CONTENT | changed, "f")


@pytest.mark.parametrize("value", [None, [], "x", 1])
def test_what_is_no_object_is_no_class(value: object) -> None:
    with pytest.raises(ShapeError, match="for its content, not an object"):
        from_json(Outer, value)
