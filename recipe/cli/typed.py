"""What was typed, on its way into options and back to the terminal."""

from __future__ import annotations

import argparse
from typing import NoReturn

from recipe.plain_text import one_line


class Parser(argparse.ArgumentParser):
    """A parser, and those of its verbs, whose errors repeat what was typed without letting it steer the terminal."""

    def error(self, message: str) -> NoReturn:
        super().error(one_line(message))
