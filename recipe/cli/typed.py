"""What was typed, on its way into options and back to the terminal."""

from __future__ import annotations

import argparse
import unicodedata
from typing import NoReturn

from recipe.plain_text import one_line


class Parser(argparse.ArgumentParser):
    """A parser, and those of its verbs, whose errors repeat what was typed without letting it steer the terminal."""

    def error(self, message: str) -> NoReturn:
        super().error(one_line(message))


def composed(name: str) -> str:
    """The name with letters and their marks composed (Unicode's NFC): é is one character, as it is in most texts.

    macOS, some keyboards and copied file names give e and a mark, which look the same and would be another run, or a
    name that no reply holds. recipe/env/run_name.sh does the same for what needs no Python.
    """
    return unicodedata.normalize("NFC", name)
