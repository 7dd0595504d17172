"""Whether a text is text: the one check of all that comes in from users, clients, files and the environment."""

from __future__ import annotations

import re

# Control characters but white space (tab, line feed, vertical tab, form feed, carriage return, next line), and halves
# of surrogate pairs: no UTF-8 holds these, so no tokenizer, file or terminal takes them.
_NOT_TEXT = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\ud800-\udfff]")
_SURROGATE = re.compile("[\ud800-\udfff]")


def flaw(text: str, *, control: bool = True) -> str | None:
    """What a text holds that is no text, and where; None where there is nothing.

    Args:
        text: from outside.
        control: whether control characters count; not in what a model said, which may hold any byte.
    """
    match = (_NOT_TEXT if control else _SURROGATE).search(text)
    if match is None:
        return None
    code = ord(match[0])
    if 0xDC80 <= code <= 0xDCFF:  # Python's mark for what it could not decode (PEP 383)
        what = f"the byte 0x{code - 0xDC00:02X}, which is no UTF-8,"
    else:
        what = f"{'half of a surrogate pair' if code >= 0xD800 else 'the control character'} U+{code:04X}"
    return f"{what} at character {match.start() + 1}"


def printable(text: str) -> str:
    """The text with a replacement character for each that is no text, so that it cannot steer a terminal."""
    return _NOT_TEXT.sub("\N{REPLACEMENT CHARACTER}", text)
