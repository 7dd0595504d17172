"""One measurement in a process of its own: `python -m recipe.experiments.training_speed one …`, which `run` starts."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recipe.experiments.training_speed.cases import CASES
from recipe.experiments.training_speed.clock import Clock
from recipe.experiments.training_speed.trainers import rank, train
from recipe.experiments.training_speed.workload import LENGTH, random_model


def measure(name: str, model: Path, work: Path, started: float) -> dict[str, Any]:
    """Train `model` as the case `name` has it, in this process.

    Args:
        work: a folder for what the trainer writes.
        started: when the process was started, by time.time, in seconds.

    Returns:
        The case's name, batch and GPUs, and the figures of `Clock.result`.
    """
    case = CASES[name]
    clock = Clock(started=started, tokens=case.gpus * case.batch * LENGTH, steps=case.steps, gpus=case.gpus)
    train(case, model, clock, work)
    return {"name": name, "batch": case.batch, "gpus": case.gpus, **clock.result()}


def main(arguments: Sequence[str]) -> None:
    """Write the model, or print the figures of one measurement as a line of JSON."""
    parser = argparse.ArgumentParser(prog="recipe.experiments.training_speed")
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("make").add_argument("model", type=Path)
    single = verbs.add_parser("one")
    single.add_argument("name")
    single.add_argument("model", type=Path)
    single.add_argument("work", type=Path)
    single.add_argument("started", type=float)
    options = parser.parse_args(arguments)
    if options.verb == "make":
        random_model().save_pretrained(options.model)
    else:
        result = measure(options.name, options.model, options.work, options.started)
        if rank() == 0:
            print(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1:])
