"""A model's text as Streamlit's Markdown shows it: formulas in either notation, money that is no formula, no pictures.

Streamlit shows HTML as text, but takes any address for a link's; so only links to the web and to mail stay links.
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
_WEB = r"(?:https?://|mailto:)"
# A link or its definition to anywhere else. In code it stands unless its address could name a scheme, whatever spells
# it.
_LINK = re.compile(rf"\](?=\(\s*(?!{_WEB}))", re.IGNORECASE)
_LINK_IN_CODE = re.compile(rf"\](?=\(\s*(?!{_WEB})[^)]*[:&\\])", re.IGNORECASE)
_DEFINITION = re.compile(rf"\](?=:\s*(?!{_WEB})\S*[:&\\])", re.IGNORECASE)
_BARE = re.compile(r"<(?=(?:javascript|vbscript|data):)", re.IGNORECASE)
# A colon before a letter begins a directive in Streamlit's Markdown, which is how `key:value` and `std::vector` lose a
# word.
_STREAMLIT = re.compile(r":(?=[A-Za-z])")


def shown(text: str) -> str:
    """The text with what Streamlit would read differently put in its notation."""
    parts = _CODE.split(text)
    joined = "".join(_LINK_IN_CODE.sub(r"\]", part) if i % 2 else _prose(part) for i, part in enumerate(parts))
    # What looks like code here need not be code to Markdown, so this is for all of it.
    return _BARE.sub(r"\<", _DEFINITION.sub(r"\]", joined))


def _prose(text: str) -> str:
    text = re.sub(r"\\\((.+?)\\\)", lambda m: f"${m[1].strip()}$", text)
    text = re.sub(r"\\\[(.+?)\\\]", lambda m: f"$${m[1]}$$", text, flags=re.DOTALL)
    text = _LINK.sub(r"\]", _PICTURE.sub(r"[\1](", text))
    parts = _FORMULA.split(text)
    return "".join(part if i % 2 else _STREAMLIT.sub(r"\\:", _DOLLAR.sub(r"\\$", part)) for i, part in enumerate(parts))
