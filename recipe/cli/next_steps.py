"""What can be done with a run that was evaluated, and with one that has no merged model yet."""

from __future__ import annotations

import shlex
from pathlib import Path

from recipe.pipeline.exact_commands import exact
from recipe.pipeline.stage import shown


def next_steps(run: str, model: str, work: Path) -> str:
    """A line for each thing, with the command that does it.

    Args:
        run: the run's name; RUN= is left out of the commands of stages where it is the default.
        model: the folder of the base.
        work: the folder of all runs.
    """
    where = _named(run)
    steps = {
        "对话 talk to it": f"make chat RUN={run}",  # without RUN, what talks is the run that merged last
        "原模型 the base": f"make chat{where} CHAT={shlex.quote(f'--model {shlex.quote(model)}')}",
        "网页 web page": f"make demo RUN={run}",
        "接口 OpenAI's API": f"make api RUN={run}",
        "llama.cpp, Ollama": f"make gguf{where}",
        "发布 publish": f"make publish{where} REPO=owner/name DRY_RUN=1",
    }
    return "\n".join(f"{what}:  {exact(f'`{command}`', work, run).strip('`')}" for what, command in steps.items())


def without_merged_model(folder: Path, newest: Path | None) -> str:
    """The line for a run with no merged model to talk to.

    Args:
        folder: of the merged model that is missing.
        newest: the merged model of the run that merged last; None where no run has one.
    """
    other = f"`make chat RUN={newest.parent.name}` talks to the run that merged last; else " if newest else ""
    merge = f"run `make merge{_named(folder.parent.name)}`"
    return f"{shown(folder)} is missing: {other}{merge}, or name a model with --model (CHAT='--model FOLDER')"


def _named(run: str) -> str:
    """The word that names the run in a command of make; empty where it is the default."""
    return "" if run == "main" else f" RUN={run}"
