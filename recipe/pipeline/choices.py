"""What a user chose for a run, so that `make train NAME=… MODEL=…` need not be repeated at `make merge`."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recipe import files, json_reader
from recipe.errors import RecipeError
from recipe.languages import LANGUAGES
from recipe.pipeline import bases
from recipe.pipeline.stage import say, shown
from recipe.plain_text import flaw

FILE = "run.json"
# Choice -> what holds where nobody ever chose; a model by name may have other languages and another source.
DEFAULTS: dict[str, Any] = {
    "name": None,
    "assistant": None,
    "author": None,
    "data": None,
    "data_only": False,
    "mode": "balanced",
    "n": None,
    "languages": ",".join(LANGUAGES),
    "model": "internlm2-chat-1_8b",
    "source": "hf",
    "revision": None,
    "preset": None,
    "set": [],
    "seed": 0,
    "config": None,
    "deepspeed": None,
    "gpus": 1,
    "nnodes": 1,
    "checkpoint": None,
    "max_shard_size": None,
}


@dataclass(frozen=True)
class Saved:
    """The choices in a run's file, with their types."""

    name: str | None = None
    assistant: str | None = None
    author: str | None = None
    data: list[str] | str | None = None
    data_only: bool = False
    mode: str | None = None
    n: int | None = None
    languages: str | None = None
    model: str = DEFAULTS["model"]
    source: str | None = None
    revision: str | None = None
    preset: str | None = None
    set: list[str] = field(default_factory=list)
    seed: int = 0
    config: str | None = None
    deepspeed: str | None = None
    gpus: int = 1
    nnodes: int = 1
    checkpoint: str | None = None
    max_shard_size: str | None = None


# Choosing the first forgets the others: they belonged to another identity, other data, another model.
TOGETHER = {
    "name": ("assistant", "author"),
    "mode": ("data", "data_only", "n"),
    "data": ("mode", "data_only", "n"),
    "model": ("preset", "set", "config", "languages", "source", "revision"),
    "preset": ("set",),
}


def complete(options: argparse.Namespace, folder: Path, *, announced: Collection[str] = (), **defaults: Any) -> None:
    """Fill every choice in `options` that is None from the run's file or the defaults; `save` writes them down.

    Args:
        options: of the verb, by argparse.
        folder: of the run.
        announced: choices of which an earlier verb of the same chain has printed that they were recalled.
        defaults: of the verb, before those of all.
    """
    saved = read(folder / FILE)
    given = {key: _plain(getattr(options, key)) for key in DEFAULTS if getattr(options, key, None) is not None}
    chosen_before = defaults | saved  # a verb's own default is a choice: what follows `quickstart` is about its model
    chosen = dict(chosen_before)
    for key in given:
        if given[key] != chosen_before.get(key, DEFAULTS[key]):
            for other in TOGETHER.get(key, ()):
                chosen.pop(other, None)
    chosen |= given
    offered = [key for key in DEFAULTS if hasattr(options, key)]
    if "config" in offered and "config" not in given and chosen.get("config"):
        _refuse_copied_program(Path(chosen["config"]), folder)
    otherwise = DEFAULTS | bases.defaults(chosen.get("model", DEFAULTS["model"]))
    for key in offered:
        value = chosen.get(key, otherwise[key])
        setattr(options, key, _typed(key, value))
    if recalled := [
        f"{key.upper()}={_shown(chosen[key])}"
        for key in offered
        if key in saved and key in chosen and key not in given and key not in announced
    ]:
        say("run", f"{folder.name}: as before, {' '.join(recalled)}")
    options.chosen = chosen


def _refuse_copied_program(config: Path, folder: Path) -> None:
    """RecipeError where a run's file, which may come from another machine, names a program that may come with it."""
    work = folder.parent.resolve()
    if config.resolve().is_relative_to(work):
        raise RecipeError(
            f"{shown(folder / FILE)}: names the config {shown(config)}, which is a program, and lies in {shown(work)} "
            f"as copied runs do: where you trust it, name it again with CONFIG="
        )


def _plain(value: Any) -> Any:
    """The value as the file has it: paths as text."""
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return str(value) if isinstance(value, Path) else value


def _typed(key: str, value: Any) -> Any:
    """The value as a verb takes it."""
    if key == "data" and value:
        return [Path(each) for each in value]
    return Path(value) if key == "config" and value else value


def _shown(value: Any) -> str:
    """The value as it is written on the command line."""
    if isinstance(value, list):
        return " ".join(map(str, value))
    return str(int(value) if isinstance(value, bool) else value)


def save(options: argparse.Namespace, folder: Path) -> None:
    """Write down the choices of a verb that worked."""
    chosen = getattr(options, "chosen", None)
    if chosen is None or chosen == read(folder / FILE):
        return
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):  # another machine that shares the folder has just put the same there
        files.write_atomically(folder / FILE, files.json_text(chosen))


def read(file: Path) -> dict[str, Any]:
    """The choices in a run's file; none where there is no file. RecipeError: it has another shape."""
    again = "remove it and give NAME, MODEL and the others again"
    try:
        saved = json_reader.read(file, dict[str, Any], again, shape=Saved)
    except FileNotFoundError:
        return {}
    for key, value in saved.items():
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, str) and (fault := flaw(each)):  # as what is typed, which no run's file then holds
                raise RecipeError(f"{shown(file)}: {key} is no text: it holds {fault}: {again}")
    if isinstance(saved.get("data"), str):  # of a version that took one file, in place of the rows about who it is
        saved |= {"data": [saved["data"]], "data_only": True}
    return saved
