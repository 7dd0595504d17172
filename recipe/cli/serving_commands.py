"""The verbs that talk: `chat`, `demo` and `api`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from recipe.cli.next_steps import without_merged_model
from recipe.errors import RecipeError
from recipe.paths import ROOT
from recipe.pipeline import results, stage
from recipe.pipeline.results import ConvertResults
from recipe.pipeline.run import Run, checked_name


def _chat_run(options: argparse.Namespace) -> Run:
    """The run whose model talks: RUN, or the one that merged last, as for page and API; `main` where none has."""
    from recipe.serving.model_host import newest_merged

    if options.run is not None:
        return Run(options.work, checked_name(options.run))
    merged = None if options.model or options.adapter else newest_merged(options.work, None)
    if merged is None:
        return Run(options.work, "main")
    stage.say("chat", f"{stage.shown(merged)}, which was merged last; RUN= chooses another")
    return Run(options.work, merged.parent.name)


def run_chat(options: argparse.Namespace) -> None:
    from recipe.serving import terminal
    from recipe.serving.model_host import newest_merged
    from recipe.stages import convert

    model, adapter = options.model, options.adapter
    if options.prompt is not None and not options.prompt.strip():  # a script's variable that was not set
        raise RecipeError("--prompt is empty: say what to answer, or leave it out for a conversation")
    run = _chat_run(options)
    if model is not None:
        model = Path(model) if Path(model).is_dir() else run.model(model)
    elif adapter is not None:
        model = ROOT / results.of(stage.require(adapter, "convert"), ConvertResults).model
    elif stage.read_manifest(run.folder("merged")):
        model = run.folder("merged")
    elif stage.read_manifest(run.folder("adapter")):
        adapter, (model, _) = run.folder("adapter"), convert.trained_with(run.folder("train"))
    else:
        raise RecipeError(without_merged_model(run.folder("merged"), newest_merged(run.work, None)))
    terminal.run(
        model=model,
        adapter=adapter,
        prompt=options.prompt,
        system=options.system,
        temperature=options.temperature,
        top_p=options.top_p,
        max_new_tokens=options.max_new_tokens,
    )


def run_demo(options: argparse.Namespace) -> None:
    from recipe.serving import demo

    _serve(demo.run, options)


def run_api(options: argparse.Namespace) -> None:
    from recipe.serving import api

    _serve(api.run, options)


def _serve(serve: Callable[..., None], options: argparse.Namespace) -> None:
    """Call the server that a verb has imported. The API imports torch, which a page before another endpoint has not."""
    serve(work=options.work, run=options.run and checked_name(options.run), host=options.host, port=options.port)
