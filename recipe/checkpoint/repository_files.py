"""Which files of a model repository are fetched where no file of data/models lists them.

First what describes the model: config.json and the tokenizer. Then, once the description is approved, its safetensors.
Never Python, and never pickles, which can run code when they are read.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

from recipe.checkpoint.safetensors_io import INDEX, SINGLE
from recipe.errors import RecipeError
from recipe.pipeline.stage import read_json, shown

REQUIRED = ("config.json", "tokenizer_config.json")
DESCRIPTION = (
    *REQUIRED,
    "tokenizer.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
    INDEX,
)
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
GGUF = ".gguf"
PROGRAMS = "custom_generate"  # a folder in which transformers looks for a `generate` of the model's own


def refuse_programs(folder: Path) -> None:
    """RecipeError where transformers would run Python of a model's folder, without asking since the folder is local."""
    if (folder / PROGRAMS).exists():
        raise RecipeError(
            f"{shown(folder / PROGRAMS)}: is a program that transformers would run as it loads the model: remove it"
        )


def description(listing: Collection[str], where: str) -> list[str]:
    """The files that say what the model is.

    Args:
        listing: the names of all files of the repository.
        where: hub, repository and revision, for messages.

    Raises:
        RecipeError: the repository is no model's, or has no safetensors.
    """
    if missing := [name for name in REQUIRED if name not in listing]:
        raise RecipeError(f"{where}: holds no {missing[0]}: is this the repository of a chat model?")
    if SINGLE not in listing and INDEX not in listing:
        if pickles := sorted(name for name in listing if name.endswith(PICKLES)):
            raise RecipeError(
                f"{where}: has its weights as pickles ({pickles[0]}), which can run code and are never fetched: choose "
                f"a repository or REVISION= with safetensors"
            )
        other = f", only {GGUF} files" if any(name.endswith(GGUF) for name in listing) else ""
        raise RecipeError(f"{where}: holds neither {SINGLE} nor {INDEX}{other}: choose a repository with safetensors")
    return [name for name in DESCRIPTION if name in listing]


def weights(folder: Path, listing: Collection[str], where: str) -> list[str]:
    """The safetensors of the repository, in one file or in shards.

    Args:
        folder: with the index, where there is one.
        listing, where: as in `description`.

    Raises:
        RecipeError: the index names a file that is no safetensors file of the repository.
    """
    if INDEX not in listing:
        return [SINGLE]
    weight_map = read_json(folder / INDEX).get("weight_map")
    names = set(weight_map.values()) if isinstance(weight_map, dict) else set()
    if not names or not all(isinstance(name, str) and re.fullmatch(r"[\w.-]+\.safetensors", name) for name in names):
        raise RecipeError(f"{shown(folder / INDEX)}: is no index of safetensors files; try another REVISION=")
    if missing := sorted(names - set(listing)):
        raise RecipeError(f"{where}: holds no {missing[0]}, though {INDEX} lists it; try another REVISION=")
    return sorted(names)
