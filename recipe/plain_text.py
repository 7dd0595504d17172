"""Whether a text is text: the one check of all that comes in from users, clients, files and the environment."""

from __future__ import annotations

import os
import re
import sys
import unicodedata

# Control characters but white space (tab, line feed, vertical tab, form feed, carriage return, next line), and halves
# of surrogate pairs: no UTF-8 holds these, so no tokenizer, file or terminal takes them.
_NOT_TEXT = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\ud800-\udfff]")
_SURROGATE = re.compile("[\ud800-\udfff]")
# White space that moves a terminal's cursor elsewhere than to the next line: what follows a carriage return overwrites
# the line that stands there.
_MOVES = re.compile("[\x0b\x0c\r\x85]")
# Joiners (ZWNJ, ZWJ) and Mongolian's vowel separator: spelling in the scripts that join, and the glue of emoji.
_JOINERS = "\u200c\u200d\u180e"
# Scripts whose letters have no case, as those that join have none, and which take no joiner.
_JOIN_NEVER = ("CJK", "HIRAGANA", "KATAKANA", "HANGUL", "BOPOMOFO", "YI SYLLABLE")
# The flags of England, Scotland and Wales, and numbers' signs of Arabic and Syriac, are of category Cf and seen.
_FLAG = re.compile("\U0001f3f4[\U000e0020-\U000e007e]+\U000e007f")
_SEEN = "\u0600\u0601\u0602\u0603\u0604\u0605\u06dd\u070f\u0890\u0891\u08e2\U000110bd\U000110cd"
# Letters, marks and symbols that leave no mark: fillers of Hangul, Braille's blank, Khmer's inherent vowels, joiner.
_BLANK = "\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0"

UTF8_REMEDY = "set PYTHONUTF8=1, or a locale such as LC_ALL=C.UTF-8, and run it again"


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
        encoding = "UTF-8" if is_utf8(sys.getfilesystemencoding()) else sys.getfilesystemencoding()
        what = f"the byte 0x{code - 0xDC00:02X}, which is no {encoding},"
    else:
        what = f"{'half of a surrogate pair' if code >= 0xD800 else 'the control character'} U+{code:04X}"
    return f"{what} at character {match.start() + 1}"


def is_utf8(encoding: str) -> bool:
    """Whether an encoding, as Python names it, is UTF-8."""
    return encoding.lower().replace("-", "").replace("_", "") == "utf8"


def locale_name() -> str:
    """The setting of the environment that decides how Python reads and writes text, for an error."""
    names = [name for name in ("LC_ALL", "LC_CTYPE", "LANG") if os.environ.get(name)][:1]
    names += ["PYTHONUTF8"] * (os.environ.get("PYTHONUTF8") == "0")
    return ", ".join(f"{name}={os.environ[name]}" for name in names) or "no LANG is set"


def misread(text: str, encoding: str | None = None) -> str | None:
    """Why a sound text arrived as another one: it was typed in UTF-8, and the locale read it as something else.

    Args:
        text: from the command line, the environment or a terminal.
        encoding: that it was read in; None is the locale's.

    Returns:
        The fault and its remedy, for an error; None where the text was read as it was typed.
    """
    encoding = encoding or sys.getfilesystemencoding()
    if is_utf8(encoding):
        return None
    try:
        typed = text.encode(encoding, "surrogateescape")
        typed.decode("utf-8")
    except UnicodeError:  # typed in the locale's encoding, or no text at all, which is `flaw`'s
        return None
    if typed.isascii():
        return None
    return f"the locale ({locale_name()}) reads text as {encoding}, and this is UTF-8: {UTF8_REMEDY}"


def printable(text: str) -> str:
    """The text with a replacement character for each that is no text, so that it cannot steer a terminal.

    All that comes from rows, models, hubs, clients and files goes through here, or through `one_line`, on its way to
    the terminal. Tabs and line feeds stay, also those of a Windows line end.
    """
    text = _NOT_TEXT.sub("\N{REPLACEMENT CHARACTER}", text.replace("\r\n", "\n"))
    return _MOVES.sub("\N{REPLACEMENT CHARACTER}", text)


def one_line(text: str) -> str:
    """The text for a terminal, on one line: as `printable` gives it, each line feed written as \\n.

    A line that came from elsewhere cannot pass for one of this recipe's own.
    """
    return printable(text).replace("\n", "\\n")


def print_error(text: str) -> None:
    """Print the last line of a process that ends by an error. text: may hold what a user, a file or a hub says."""
    print(f"error: {one_line(text)}", file=sys.stderr, flush=True)


def hidden(name: str) -> str | None:
    """The first character of a name that nobody sees or that turns the direction, and where; None where there is none.

    For names alone. Rows, questions and replies may hold such characters: they are part of what people write, and
    a model is to read them as they are.

    Args:
        name: such as NAME or RUN.

    Returns:
        Its code point, its name in Unicode and its position, for an error.
    """
    name = _FLAG.sub(lambda flag: "\U0001f3f4" * len(flag[0]), name)
    for position, character in enumerate(name):
        if character in _BLANK or (unicodedata.category(character) == "Cf" and character not in _SEEN):
            if character in _JOINERS and _may_join(name[:position]):
                continue
            title = unicodedata.name(character, "a character without a name")
            return f"U+{ord(character):04X} ({title}) at character {position + 1}"
    return None


def _may_join(before: str) -> bool:
    """Whether a joiner may follow: after a letter of a script without case, its marks, or an emoji."""
    base = next((character for character in reversed(before) if unicodedata.category(character)[0] != "M"), " ")
    if unicodedata.category(base) in ("So", "Sk"):  # Sk: the skin tones
        return True
    return unicodedata.category(base) == "Lo" and not unicodedata.name(base, "").startswith(_JOIN_NEVER)
