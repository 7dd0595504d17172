"""Base models by name: the files of data/models, one a model, and any other repository of a hub as owner/name.

A file says where its model lies and what of it may be fetched. It may also say which languages the model speaks.
`recipe.checkpoint.hub` fetches the model.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from recipe import json_reader
from recipe.errors import RecipeError
from recipe.paths import DATA

MODELS = DATA / "models"
# The hubs that may have any repository, the default one first, with the page below which each shows them; and how they
# name one.
PAGES = {"hf": "https://huggingface.co/", "modelscope": "https://modelscope.cn/models/"}
HUBS = tuple(PAGES)
REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


@dataclass(frozen=True)
class Hub:
    """Where one hub has a model.

    Attributes:
        repo: the repository, or the project of a package index.
        revision: the commit, tag or version. None is the hub's default branch; the commit that it names is written
            down at the first download.
        required, optional: the files of this hub, where it has other files than the model's other hubs.
    """

    repo: str
    revision: str | None
    required: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()


@dataclass(frozen=True)
class PinnedModel:
    """One model, and what of it may be fetched.

    Attributes:
        name: of its file in data/models, without .json, or owner--name.
        hubs: by SOURCE=, the default one first.
        required, optional: file names, for hubs that name no files of their own. Where both name none, the files are
            chosen by what the repository holds.
        sha256: of some of the files.
        languages: what the model speaks, as LANGUAGES= takes it; None for all languages of the data.
        license: of the weights, as the publisher's model card names it; None where it is not known.
    """

    name: str
    hubs: Mapping[str, Hub]
    required: tuple[str, ...]
    optional: tuple[str, ...]
    sha256: Mapping[str, str]
    languages: str | None = None
    license: str | None = None

    def files(self, source: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The required and the optional files of a hub."""
        hub = self.hubs[source]
        return (hub.required, hub.optional) if hub.required else (self.required, self.optional)

    def same_files(self, source: str) -> list[str]:
        """The hubs that hold the same files as `source`, which is the first of them."""
        files = self.files(source)
        return [source, *(other for other in self.hubs if other != source and files[0] and self.files(other) == files)]


@dataclass(frozen=True)
class _FileHub:
    repo: str
    revision: str | None = None
    required: list[str] = field(default_factory=list)
    optional: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _File:
    """A file of data/models."""

    hubs: Mapping[str, _FileHub]
    sha256: Mapping[str, str]
    required: list[str] = field(default_factory=list)
    optional: list[str] = field(default_factory=list)
    languages: str | None = None
    license: str | None = None


def names() -> list[str]:
    """The names of the models that can be fetched."""
    return sorted(file.stem for file in MODELS.glob("*.json"))


def find(model: str) -> PinnedModel | None:
    """The model of data/models that MODEL= stands for.

    Args:
        model: its name, or a repository of one of its hubs.

    Returns:
        None where there is no such model.
    """
    for name in names():
        content = json_reader.read(MODELS / f"{name}.json", _File, json_reader.OF_CHECKOUT)
        hubs = {
            source: Hub(hub.repo, hub.revision, tuple(hub.required), tuple(hub.optional))
            for source, hub in content.hubs.items()
        }
        if model in (name, *(hub.repo for hub in hubs.values())):
            required, optional = tuple(content.required), tuple(content.optional)
            return PinnedModel(name, hubs, required, optional, content.sha256, content.languages, content.license)
    return None


def by_name(model: str, revision: str | None = None) -> PinnedModel | None:
    """The model of data/models or of any repository of a hub that MODEL= stands for.

    Args:
        model: a name, or owner/name.
        revision: the commit, branch or tag of owner/name.

    Returns:
        None where the text is neither, or a folder.

    Raises:
        RecipeError: a revision for a model whose revision data/models has.
    """
    if Path(model).is_dir():
        return None
    if pinned := find(model):
        if revision:
            raise RecipeError(
                f"REVISION={revision}: data/models/{pinned.name}.json says which revision MODEL={model} has; REVISION= "
                f"is for other repositories, as MODEL=owner/name"
            )
        return pinned
    if not REPOSITORY.fullmatch(model):
        return None
    hubs = {source: Hub(model, revision) for source in HUBS}
    name = model.replace("/", "--")
    if model.count("--"):  # a--b/c and a/b--c
        name += f"-{sha256(model.encode()).hexdigest()[:8]}"
    return PinnedModel(name, hubs, (), (), {})


def defaults(model: str) -> dict[str, Any]:
    """The choices that hold for a model where a run has made none: `source`, and `languages` where it speaks few."""
    if (pinned := find(model)) is None:
        return {}
    languages = {"languages": pinned.languages} if pinned.languages else {}
    return {"source": next(iter(pinned.hubs)), **languages}
