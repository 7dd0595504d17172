"""The types of options' values, as argparse calls them; a wrong one is an error that says what is right."""

from __future__ import annotations

import argparse
import unicodedata
from collections.abc import Callable
from pathlib import Path


def absolute_path(text: str) -> Path:
    """The path from the folder of the call, which changes to the checkout before a verb runs."""
    return Path(text).expanduser().absolute()


def base_text(text: str) -> str:
    """MODEL or MODEL=LANGUAGES of a sweep, a folder by its absolute path."""
    if Path(text).is_dir():
        return str(absolute_path(text))
    model, equals, languages = text.rpartition("=")
    return f"{absolute_path(model)}={languages}" if equals and Path(model).is_dir() else text


def composed(name: str) -> str:
    """The name with letters and their marks composed (Unicode's NFC): é is one character, as it is in most texts.

    macOS, some keyboards and copied file names give e and a mark, which look the same and would be another run, or a
    name that no reply holds. recipe/env/run_name.sh does the same for what needs no Python.
    """
    return unicodedata.normalize("NFC", name)


def not_negative(text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number from 0")
    return int(text)


def seed_number(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) >= 2**31:
        raise argparse.ArgumentTypeError(f"{text!r} is no seed: a whole number from 0 to 2147483647")
    return int(text)


def positive(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number above 0")
    return int(text)


def deepspeed_name(text: str) -> str:
    """XTuner's own names, such as deepspeed_zero2, are taken too."""
    return text.removeprefix("deepspeed_")


def port_number(text: str) -> int:
    if positive(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is no port: a whole number from 1 to 65535")
    return int(text)


def number_within(low: float, high: float) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text!r} must be a number from {low:g} to {high:g}")
        return value

    return parse
