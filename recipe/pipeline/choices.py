"""What a user chose for a run, so that `make train NAME=… MODEL=…` need not be repeated at `make merge`."""

from __future__ import annotations

import argparse
import contextlib
import json
from pathlib import Path
from typing import Any

from recipe import files
from recipe.errors import RecipeError
from recipe.languages import LANGUAGES
from recipe.pipeline import bases
from recipe.pipeline.stage import say, shown

FILE = "run.json"
# Choice -> what holds where nobody ever chose; a model by name may have other languages and another source.
DEFAULTS: dict[str, Any] = {
    "name": None,
    "assistant": None,
    "author": None,
    "data": None,
    "mode": "balanced",
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
}
# Choosing the first forgets the others: they belonged to another identity, other data, another model.
TOGETHER = {
    "name": ("assistant", "author"),
    "mode": ("data",),
    "data": ("mode",),
    "model": ("preset", "set", "config", "languages", "source", "revision"),
    "preset": ("set",),
}


def complete(options: argparse.Namespace, folder: Path, **defaults: Any) -> None:
    """Fill every choice in `options` that is None from the run's file or the defaults; `save` writes them down."""
    saved = _read(folder / FILE)
    given = {key: getattr(options, key) for key in DEFAULTS if getattr(options, key, None) is not None}
    chosen = defaults | saved  # a verb's own default is a choice: what follows `quickstart` is about its model
    for key in given:
        if given[key] != saved.get(key):
            for other in TOGETHER.get(key, ()):
                chosen.pop(other, None)
    chosen |= {key: str(value) if isinstance(value, Path) else value for key, value in given.items()}
    offered = [key for key in DEFAULTS if hasattr(options, key)]
    otherwise = DEFAULTS | bases.defaults(chosen.get("model", DEFAULTS["model"]))
    for key in offered:
        value = chosen.get(key, otherwise[key])
        setattr(options, key, Path(value) if key in ("data", "config") and value else value)
    if recalled := [
        f"{key.upper()}={chosen[key]}" for key in offered if key in saved and key in chosen and key not in given
    ]:
        say("run", f"{folder.name}: as before, {' '.join(recalled)}")
    options.chosen = chosen


def save(options: argparse.Namespace, folder: Path) -> None:
    """Write down the choices of a verb that worked."""
    chosen = getattr(options, "chosen", None)
    if chosen is None or chosen == _read(folder / FILE):
        return
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):  # another machine that shares the folder has just put the same there
        files.write_atomically(folder / FILE, files.json_text(chosen))


def _read(file: Path) -> dict[str, Any]:
    try:
        saved = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError:
        saved = None
    if not isinstance(saved, dict):
        raise RecipeError(f"{shown(file)}: is not a JSON object; remove it and give NAME, MODEL and the rest again")
    return saved
