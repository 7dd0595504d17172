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
_PICTURE = re.compile(r"!\[([^\[\]]*)\]\(")
# LaTeX's brackets around a formula in a line and one by itself.
_INLINE = re.compile(r"\\\(((?:(?!\\\().)+?)\\\)")
_DISPLAY = re.compile(r"\\\[((?:(?!\\\[).)+?)\\\]", re.DOTALL)
_WEB = r"(?:https?://|mailto:)"
# A link, or its definition, to any other address. In code it stays unless its address could name a scheme, in whatever
# spelling. No pattern here scans the same text again for each of its beginnings: a long one would take hours, and all
# other visitors would wait.
_LINK = re.compile(rf"\](?=\(\s*(?!{_WEB}))", re.IGNORECASE)
_DEFINITION = re.compile(rf"\](?=:\s*(?!{_WEB})[^\s:&\\]*[:&\\])", re.IGNORECASE)
_BARE = re.compile(r"<(?=(?:javascript|vbscript|data):)", re.IGNORECASE)
# What can mean something in Markdown: all ASCII punctuation may be escaped.
_MARKUP = re.compile(r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~]""")
# A colon before a letter begins a directive in Streamlit's Markdown: `key:value` and `std::vector` would lose a word.
_STREAMLIT = re.compile(r":(?=[A-Za-z])")


def streamlit_markdown(text: str) -> str:
    """A model's text as Markdown that Streamlit shows as it is meant.

    Args:
        text: of a message, which may break off anywhere.
    """
    parts = _CODE.split(text)
    joined = "".join(_code(part) if i % 2 else _prose(part) for i, part in enumerate(parts))
    # What looks like code here need not be code to Markdown, so this is for all of it.
    return _BARE.sub(r"\<", _DEFINITION.sub(r"\]", joined))


def escaped(text: str) -> str:
    """Text that is no Markdown, as Markdown that shows it: of a model's name, a path, an error."""
    return _MARKUP.sub(r"\\\g<0>", " ".join(text.split()))


def _code(text: str) -> str:
    """Code without links to addresses that could name a scheme: in which a colon, `&` or a backslash stands."""

    def mend(piece: str) -> str:
        last = max(map(piece.rfind, ":&\\"))
        return _LINK.sub(lambda m: r"\]" if m.start() + 1 < last else m[0], piece)

    return ")".join(map(mend, text.split(")")))


def _prose(text: str) -> str:
    text = _INLINE.sub(lambda m: f"${m[1].strip()}$", text)
    text = _DISPLAY.sub(lambda m: f"$${m[1]}$$", text)
    text = _PICTURE.sub(r"[\1](", text).replace("![", r"!\[")
    text = _LINK.sub(r"\]", text)
    parts = _FORMULA.split(text)
    return "".join(part if i % 2 else _STREAMLIT.sub(r"\\:", _DOLLAR.sub(r"\\$", part)) for i, part in enumerate(parts))
