"""The folders of one run, and how a run may be named."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import filterfalse
from pathlib import Path

from recipe.errors import RecipeError
from recipe.languages import LANGUAGES
from recipe.pipeline import bases, stage
from recipe.plain_text import hidden

# Folders under --work that belong to no run, or to the runs of a verb that is called so, and to other tools.
SHARED = ("models", "hub", "replay")
RESERVED = ("sweep", "bench", "miniature", "browser")
# Files in a run's folder that tell it from the folder of a sweep or a bench.
OF_A_RUN = ("run.json", "data", "train")
# Bytes of a name: the folders and files beside it add to it, and a file system takes 255.
LONGEST_RUN, LONGEST_MODEL = 200, 180
# A run's name without the marks on its letters.
_NAME = re.compile(r"\w[\w.-]*")


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
        """The converted base model, which runs on the same base share.

        Folders of the user's may have the same name, so their path is part of it. What an earlier version converted
        from this very folder under its name alone stays in use.
        """
        folder = self.work / "models" / model_name(model)
        if not Path(model).is_absolute() or bases.find(model):
            return folder
        if earlier := stage.read_manifest(folder):
            settings = (earlier.get("key") or {}).get("settings") or {}
            if settings.get("model") == model:
                return folder
        place = stage.shown(Path(model).resolve())  # the same in a container
        name = folder.name.encode()[:LONGEST_MODEL].decode(errors="ignore")
        return folder.with_name(f"{name}-{sha256(place.encode()).hexdigest()[:8]}")

    def replay(self, model: str, languages: Sequence[str] = LANGUAGES) -> Path:
        """The base model's own replies, which runs on the same base in the same languages share.

        Runs in fewer languages have a folder of their own, so that none makes anew what another needs. No model's name
        holds the "+".
        """
        suffix = "" if tuple(languages) == LANGUAGES else f"+{'+'.join(languages)}"
        return self.work / "replay" / f"{self.model(model).name}{suffix}"


def model_name(model: str) -> str:
    """The name of a base model's folder under work/models and work/replay: owner--name for a hub's repository."""
    if base := bases.by_name(model):
        return base.name
    return re.sub(r"[^\w.-]", "_", Path(model).name).strip(".") or "model"


def checked_name(run: str, verb: str | None = None) -> str:
    """The name of a run as it was given.

    Args:
        run: the name.
        verb: that has a folder of its own, `sweep` or `bench`; None for all others.

    Raises:
        RecipeError: no folder of a run can be called so, or another verb's folder is.
    """
    if character := hidden(run):
        raise RecipeError(f"RUN={run!a}: holds {character}, which nobody sees in a folder's name; leave it out")
    on_any_file_system = run.lower()  # some, as of macOS, take a and A for the same
    if not _NAME.fullmatch("".join(filterfalse(_is_mark, run))) or _is_mark(run[0]) or on_any_file_system in SHARED:
        raise RecipeError(
            f"RUN={run!r}: a run is named with letters, digits, '-', '_' and '.', and none of {', '.join(SHARED)}"
        )
    if len(run.encode()) > LONGEST_RUN:
        raise RecipeError(f"RUN={run[:20]}…: has {len(run.encode())} bytes; a folder's name has {LONGEST_RUN} at most")
    if on_any_file_system in RESERVED and run != verb:
        raise RecipeError(
            f"RUN={run!r}: work/{on_any_file_system} belongs to `make "
            f"{'test-browser' if on_any_file_system == 'browser' else on_any_file_system}`: choose another "
            f"RUN; rename the folder where it is a run of yours"
        )
    return run


def refuse_other_spelling(work: Path, run: str) -> None:
    """RecipeError where the file system has a run of another name in the place of this one's: it ignores case."""
    if not (work / run).exists():
        return
    names = {unicodedata.normalize("NFC", folder.name): folder.name for folder in work.iterdir()}
    if run not in names and run not in names.values():
        other = next((name for name in names if name.casefold() == run.casefold()), "another run")
        raise RecipeError(
            f"RUN={run}: {stage.shown(work)} holds {other}, and its file system takes both for the same: choose "
            f"RUN={other} for that run, or a name that differs in more than case"
        )


def _is_mark(character: str) -> bool:
    """Whether a character belongs to the letter before it, as vowels of Hindi and Thai do, and is seen."""
    return unicodedata.category(character)[0] == "M" and "VARIATION SELECTOR" not in unicodedata.name(character, "")


def refuse_run(folder: Path, verb: str) -> None:
    """RecipeError where a folder that a verb fills with runs or measurements is a run itself."""
    if any((folder / name).exists() for name in OF_A_RUN):
        raise RecipeError(
            f"{stage.shown(folder)} is a run, which `{verb}` would write into: choose another RUN for `make {verb}`"
        )
