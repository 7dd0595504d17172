"""What the verbs of experiments do that belong to no run. Heavy imports happen inside."""

from __future__ import annotations

import argparse

from recipe.cores import cores
from recipe.device import gpus
from recipe.errors import RecipeError
from recipe.pipeline.run import checked_name, refuse_run


def run_sweep(options: argparse.Namespace) -> None:
    from recipe.experiments import sweep

    work = options.work / checked_name(options.run, "sweep")
    refuse_run(work, "sweep")
    bases = [sweep.Base.parse(text) for text in options.model]
    planned = sweep.jobs_of(bases, options.names, options.seeds)
    jobs = options.jobs or len(gpus()) or cores()
    outcomes = sweep.run(work, planned, jobs=jobs, settings=options.set)
    print(sweep.table(outcomes), flush=True)
    sweep.refuse_below_thresholds(outcomes, work)


def run_bench(options: argparse.Namespace) -> None:
    from recipe.experiments import end_to_end, training_speed

    work = options.work / checked_name(options.run, "bench")
    refuse_run(work, "bench")
    every = [end_to_end.NAME, *training_speed.CASES]
    if unknown := [name for name in options.names if name not in every]:
        raise RecipeError(f"bench: {unknown[0]!r} is none of {'; '.join(every)}")
    if end_to_end.NAME in options.names:
        if options.names != [end_to_end.NAME]:
            raise RecipeError(f"bench: {end_to_end.NAME} is measured alone; name the others in a call of their own")
        measured = end_to_end.run(options.work, work, options.model or "miniature", options.languages)
        print(end_to_end.table(measured), flush=True)
        return
    if options.model or options.languages:
        raise RecipeError(
            f"bench: MODEL and LANGUAGES are for {end_to_end.NAME}; training speed has a model and rows of its own"
        )
    speeds = training_speed.run(work, options.names or list(training_speed.CASES))
    print(training_speed.table(speeds), flush=True)
