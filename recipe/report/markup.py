"""HTML and SVG elements. Text is escaped when it enters an element, so that no reply, name or setting can become
markup."""

from __future__ import annotations

import html
import re

# Elements that have no end tag in HTML.
VOID = frozenset({"meta", "input"})


class Html(str):
    """A string that is markup already."""

    __slots__ = ()


# Control characters, halves of surrogate pairs, no characters at all, and marks that turn the reading direction around.
UNPRINTABLE = re.compile(
    "[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f\\ud800-\\udfff\\ufffe\\uffff\\u202a-\\u202e\\u2066-\\u2069]"
)


def printable(value: str) -> str:
    """What a page can hold: anything else becomes U+FFFD, to be seen."""
    return UNPRINTABLE.sub("\ufffd", value)


def text(value: str) -> Html:
    """The value as it may stand in an element or an attribute."""
    return value if isinstance(value, Html) else Html(html.escape(printable(value)))


def join(*parts: str | None) -> Html:
    return Html("".join(text(part) for part in parts if part is not None))


def tag(name: str, /, *children: str | None, **attributes: str | int | float | bool | None) -> Html:
    """An element. Attributes: `class_` is class, `aria_label` is aria-label; None and False leave one out."""
    written = ""
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        key = key.rstrip("_").replace("_", "-")
        written += f" {key}" if value is True else f' {key}="{text(str(value))}"'
    if name in VOID:
        return Html(f"<{name}{written}>")
    return Html(f"<{name}{written}>{join(*children)}</{name}>")
