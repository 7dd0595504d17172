"""A model's text as Streamlit's Markdown shows it: formulas in either notation, money that is no formula, no pictures.

Markup that could run script is Streamlit's to leave out, and it does: HTML is shown as text.
"""

from __future__ import annotations

import re

# Fenced code (also one that is not closed yet) and code in a line: told as it is.
_CODE = re.compile(r"(^```.*?(?:^```[^\S\n]*$|\Z)|`[^`\n]+`)", re.MULTILINE | re.DOTALL)
# $…$ is a formula as pandoc has it: no space inside its dollars, no digit behind.
_FORMULA = re.compile(r"(\$\$.+?\$\$|(?<![\\$])\$(?![\s$])(?:[^$\n\\]|\\.)*?(?<!\s)\$(?![\d$]))", re.DOTALL)
_DOLLAR = re.compile(r"(?<!\\)\$")
# A picture would be fetched by the visitor's browser from wherever the model says.
_PICTURE = re.compile(r"!\[([^\]]*)\]\(")
# Streamlit's own notation for coloured text and icons, which no model means.
_STREAMLIT = re.compile(r":(?=[\w-]+[:\[])")


def shown(text: str) -> str:
    """The text with what Streamlit would read differently put in its notation."""
    parts = _CODE.split(text)
    return "".join(part if i % 2 else _prose(part) for i, part in enumerate(parts))


def _prose(text: str) -> str:
    text = re.sub(r"\\\((.+?)\\\)", lambda m: f"${m[1].strip()}$", text)
    text = re.sub(r"\\\[(.+?)\\\]", lambda m: f"$${m[1]}$$", text, flags=re.DOTALL)
    text = _PICTURE.sub(r"[\1](", text)
    parts = _FORMULA.split(text)
    return "".join(part if i % 2 else _STREAMLIT.sub(r"\\:", _DOLLAR.sub(r"\\$", part)) for i, part in enumerate(parts))
