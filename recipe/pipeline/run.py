"""The folders of one run, and how a run may be named."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from recipe.errors import RecipeError
from recipe.languages import LANGUAGES
from recipe.pipeline import bases

# Folders under --work that belong to no run.
SHARED = ("models", "hub", "replay")


@dataclass(frozen=True)
class Run:
    """Where the stages of one run write.

    Attributes:
        work: the folder of all runs.
        name: of this run, as `checked_name` returns it.
    """

    work: Path
    name: str

    def folder(self, folder: str) -> Path:
        """A folder of this run alone."""
        return self.work / self.name / folder

    def model(self, model: str) -> Path:
        """The converted base model, which runs on the same base share."""
        return self.work / "models" / model_name(model)

    def replay(self, model: str, languages: Sequence[str] = LANGUAGES) -> Path:
        """The base model's own replies, which runs on the same base in the same languages share.

        Runs in fewer languages have a folder of their own, so that none makes anew what another needs. No model's name
        holds the "+".
        """
        suffix = "" if tuple(languages) == LANGUAGES else f"+{'+'.join(languages)}"
        return self.work / "replay" / f"{model_name(model)}{suffix}"


def model_name(model: str) -> str:
    """The name of a base model's folder under work/models and work/replay: owner--name for a hub's repository."""
    if base := bases.by_name(model):
        return base.name
    return re.sub(r"[^\w.-]", "_", Path(model).name).strip(".") or "model"


def checked_name(run: str) -> str:
    """The name of a run as it was given. RecipeError: no folder of a run can be called so."""
    if not re.fullmatch(r"[\w][\w.-]*", run) or run in SHARED:
        raise RecipeError(
            f"RUN={run!r}: a run is named with letters, digits, '-', '_' and '.', and none of {', '.join(SHARED)}"
        )
    return run
