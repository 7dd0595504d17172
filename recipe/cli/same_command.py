"""The command that a user types to have the same done again, with RUN= and all that the run does not remember yet."""

from __future__ import annotations

import argparse

from recipe.paths import ROOT
from recipe.pipeline import choices


def training_command(options: argparse.Namespace) -> list[str]:
    """The words of the command that trains with these options again.

    Args:
        options: of `train` or `quickstart`, completed by the run's earlier choices.

    Returns:
        Words for `make`, or for `python -m recipe` where the results lie elsewhere than Make has them.
    """
    saved = choices.read(options.work / options.run / choices.FILE)
    settings = {
        key: getattr(options, key)
        for key in ("config", "deepspeed", "gpus", "nnodes")
        if getattr(options, key) is not None
        and str(getattr(options, key)) != str(saved.get(key, choices.DEFAULTS[key]))
    }
    if options.track:  # which no run remembers
        settings["track"] = options.track
    if options.nnodes > 1:
        settings |= {key: getattr(options, key) for key in ("node_rank", "master_addr", "master_port")}
    if options.work == ROOT / "work":
        return ["make", options.verb, f"RUN={options.run}", *(f"{k.upper()}={v}" for k, v in settings.items())]
    words = ["python", "-m", "recipe", options.verb, "--work", str(options.work), "--run", options.run]
    return words + [word for k, v in settings.items() for word in (f"--{k.replace('_', '-')}", str(v))]
