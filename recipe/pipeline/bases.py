"""Base models by name: the files of data/models, one a model.

A file says where its model lies and what of it may be fetched. It may also say which languages the model speaks.
`recipe.checkpoint.hub` fetches the model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from recipe.paths import DATA

MODELS = DATA / "models"


@dataclass(frozen=True)
class Hub:
    """Where one hub has a model.

    Attributes:
        repo: the repository, or the project of a package index.
        revision: the commit, tag or version.
        required, optional: the files of this hub, where it has other files than the model's other hubs.
    """

    repo: str
    revision: str
    required: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()


@dataclass(frozen=True)
class PinnedModel:
    """A file of data/models: one model, and what of it may be fetched.

    Attributes:
        name: of the file, without .json.
        hubs: by SOURCE=, the default one first.
        required, optional: file names, for hubs that name no files of their own.
        sha256: of some of the files.
        languages: what the model speaks, as LANGUAGES= takes it; None for all languages of the data.
    """

    name: str
    hubs: Mapping[str, Hub]
    required: tuple[str, ...]
    optional: tuple[str, ...]
    sha256: Mapping[str, str]
    languages: str | None = None

    def files(self, source: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The required and the optional files of a hub."""
        hub = self.hubs[source]
        return (hub.required, hub.optional) if hub.required else (self.required, self.optional)

    def same_files(self, source: str) -> list[str]:
        """The hubs that hold the same files as `source`, which is the first of them."""
        others = [other for other in self.hubs if other != source and self.files(other) == self.files(source)]
        return [source, *others]


def names() -> list[str]:
    """The names of the models that can be fetched."""
    return sorted(file.stem for file in MODELS.glob("*.json"))


def find(model: str) -> PinnedModel | None:
    """The pinned model that MODEL= stands for.

    Args:
        model: its name, or a repository of one of its hubs.

    Returns:
        None where there is no such model.
    """
    for name in names():
        content = json.loads((MODELS / f"{name}.json").read_text(encoding="utf-8"))
        hubs = {source: _hub(**hub) for source, hub in content["hubs"].items()}
        if model in (name, *(hub.repo for hub in hubs.values())):
            required, optional = tuple(content.get("required", ())), tuple(content.get("optional", ()))
            return PinnedModel(name, hubs, required, optional, content["sha256"], content.get("languages"))
    return None


def defaults(model: str) -> dict[str, Any]:
    """The choices that hold for a model where a run has made none: `source`, and `languages` where it speaks few."""
    if (pinned := find(model)) is None:
        return {}
    languages = {"languages": pinned.languages} if pinned.languages else {}
    return {"source": next(iter(pinned.hubs)), **languages}


def _hub(repo: str, revision: str, required: list[str] | None = None, optional: list[str] | None = None) -> Hub:
    return Hub(repo, revision, tuple(required or ()), tuple(optional or ()))
