"""Commands in what a user reads, as they must be typed for the run and the folder that the user works with.

Errors and lines of progress name commands of Make in backquotes, often without RUN=: who writes them knows a folder,
not the call. Make has its results in work/; elsewhere `python -m recipe` does the same with --work.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from recipe.paths import ROOT
from recipe.pipeline import table

# `make VERB… VARIABLE=value…`, in backquotes.
_MAKE = re.compile(r"`make ([a-z-]+(?: [a-z-]+)*)((?: [A-Z_]+=(?:'[^'`]*'|\"[^\"`]*\"|[^ '\"`])*)*)`")
# Verb -> the run that it takes without RUN=; "" is the one that merged last. Verbs of stages take main.
DEFAULT_RUNS = {"quickstart": "quickstart", "chat": "", "demo": "", "api": "", "speed": "main"}
# Variables whose value is words for the verb.
WORDS = ("CHAT", "SPEED")
FLAGS = ("DATA_ONLY", "DRY_RUN", "OFFLINE", "PARTS", "PUBLIC", "RESUME", "UNVERIFIED")
_called_for: ContextVar[tuple[Path, str] | None] = ContextVar("_called_for", default=None)


@contextmanager
def called_for(work: Path, run: str | None) -> Iterator[None]:
    """A context in which `exact` is for the results in `work` and for `run`, None or empty where none was named."""
    token = _called_for.set((work, run or ""))
    try:
        yield
    finally:
        _called_for.reset(token)


def exact(text: str, work: Path | None = None, run: str | None = None) -> str:
    """The text with each command of Make in backquotes as it must be typed.

    Args:
        text: such as an error.
        work, run: as in `called_for`; without work, those of the context, and outside of one the text stays.
    """
    place = (work, run or "") if work else _called_for.get()
    if place is None:
        return text
    return _MAKE.sub(lambda match: f"`{_command(match[1].split(), match[2], *place)}`", text)


def _command(verbs: list[str], settings: str, work: Path, run: str) -> str:
    variables = dict(word.split("=", 1) for word in shlex.split(settings))
    as_typed = f"make {' '.join(verbs)}{settings}"
    if work == ROOT / "work":
        runs = {DEFAULT_RUNS.get(verb, "main") for verb in verbs if verb in DEFAULT_RUNS or verb in table.BY_VERB}
        lacks_run = run and runs - {run} and "RUN" not in variables
        return f"make {' '.join(verbs)} RUN={run}{settings}" if lacks_run else as_typed
    run = variables.pop("RUN", run)
    if verbs == ["clean"]:
        return shlex.join(["rm", "-r", str(work / run)])
    if not all(verb in DEFAULT_RUNS or verb in table.BY_VERB for verb in verbs):  # sweep, bench, and what needs Make
        return as_typed
    return " && ".join(shlex.join(_words(verb, variables, work, run)) for verb in verbs)


def _words(verb: str, variables: dict[str, str], work: Path, run: str) -> list[str]:
    words = ["python", "-m", "recipe", verb, "--work", str(work), *(["--run", run] if run else [])]
    for variable, value in variables.items():
        option = f"--{variable.lower().replace('_', '-')}"
        words += shlex.split(value) if variable in WORDS else [option] if variable in FLAGS else [option, value]
    return words
