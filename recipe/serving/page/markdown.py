"""A model's text as Streamlit's Markdown shows it: formulas in either notation, money that is no formula, no pictures.

Streamlit shows HTML as text, but takes any address for a link's; so only links to the web and to mail stay links.
"""

from __future__ import annotations

import re

# Fenced code (also one that is not closed yet) and code in a line, which stay as they are.
_CODE = re.compile(r"(^```.*?(?:^```[^\S\n]*$|\Z)|`[^`\n]+`)", re.MULTILINE | re.DOTALL)
# $…$ is a formula as pandoc has it: no space inside its dollars, no digit behind.
_FORMULA = re.compile(r"(\$\$.+?\$\$|(?<![\\$])\$(?![\s$])(?:[^$\n\\]|\\.)*?(?<!\s)\$(?![\d$]))", re.DOTALL)
_DOLLAR = re.compile(r"(?<!\\)\$")
# The visitor's browser would fetch a picture from any address that the model writes.
_PICTURE = re.compile(r"!\[([^\]]*)\]\(")
_WEB = r"(?:https?://|mailto:)"
# A link, or its definition, to any other address. In code it stays unless its address could name a scheme, in whatever
# spelling.
_LINK = re.compile(rf"\](?=\(\s*(?!{_WEB}))", re.IGNORECASE)
_LINK_IN_CODE = re.compile(rf"\](?=\(\s*(?!{_WEB})[^)]*[:&\\])", re.IGNORECASE)
_DEFINITION = re.compile(rf"\](?=:\s*(?!{_WEB})\S*[:&\\])", re.IGNORECASE)
_BARE = re.compile(r"<(?=(?:javascript|vbscript|data):)", re.IGNORECASE)
# A colon before a letter begins a directive in Streamlit's Markdown: `key:value` and `std::vector` would lose a word.
_STREAMLIT = re.compile(r":(?=[A-Za-z])")


def streamlit_markdown(text: str) -> str:
    """A model's text as Markdown that Streamlit shows as it is meant.

    Args:
        text: of a message, which may break off anywhere.
    """
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
