"""What each verb does: from the options of a call to the stage, server or experiment. Heavy imports happen inside."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

from recipe.checkpoint import precision
from recipe.cli import hardware
from recipe.cli.experiment_commands import run_bench, run_sweep
from recipe.cli.next_steps import next_steps
from recipe.cli.parser import option_names
from recipe.cli.same_command import training_command
from recipe.cli.serving_commands import run_api, run_chat, run_demo
from recipe.device import check_device, check_gpus
from recipe.errors import RecipeError
from recipe.languages import parse_languages
from recipe.library_logging import OFFLINE
from recipe.paths import ROOT
from recipe.pipeline import choices, results, stage, table
from recipe.pipeline.results import ConfigResults, DataResults, ModelResults
from recipe.pipeline.run import Run, checked_name, refuse_other_spelling
from recipe.plain_text import printable
from recipe.training import tracking

# MiB of a card that the driver, the allocator's reserve and a desktop want beside what a training allocates.
RESERVED_MIB = 2_000


def _run(options: argparse.Namespace) -> Run:
    """The run's folders, its earlier choices filled in."""
    if getattr(options, "track", None):
        tracking.check(options.track)
    run = Run(options.work, checked_name(options.run))
    refuse_other_spelling(run.work, run.name)
    default = {"model": "miniature"} if options.verb == "quickstart" else {}
    if options.verb != "speed" and not hasattr(options, "chosen"):
        announced = option_names(options.after) if options.after else set()
        choices.complete(options, options.work / options.run, announced=announced, **default)
    if getattr(options, "nnodes", 1) > 1:
        stage.wait_for_locks()  # held by the other machines, with which this one may share the folder
    return run


def run_data(options: argparse.Namespace) -> None:
    from recipe.corpus.identity import INTERNLM_BASE, OPEN_BASE, Identity
    from recipe.stages import data, model

    run = _run(options)
    if options.name is None:
        raise RecipeError("NAME is missing; say whose assistant it is, for example NAME=小明")
    identity = Identity(options.name, options.assistant, options.author)
    data.make(
        run.folder("data"),
        identity=identity,
        mode=options.mode,
        own=options.data,
        own_only=options.data_only,
        n=options.n,
        seed=options.seed,
        extended=model.asks_extended_prompts(options.model),
        languages=parse_languages(options.languages),
        base=INTERNLM_BASE if model.is_internlm(options.model) else OPEN_BASE,
    )


def run_model(options: argparse.Namespace) -> None:
    from recipe.stages import config, model

    run = _run(options)
    check_device(options.device)
    check_gpus(getattr(options, "gpus", 1))  # of `quickstart`, before anything is fetched
    if stage.read_manifest(run.model(options.model)) is None:
        if options.preset or options.set:  # `replay` checks them again, by the preset that fits the model
            config.check_settings(options.preset or config.widest_preset(options.model), options.set)
        hardware.refuse_card(options.preset)
        hardware.warn_without_gpu(options.model)
    model.make(
        run.model(options.model),
        model=options.model,
        downloads=run.work / "hub",
        source=options.source,
        revision=options.revision,
        offline=options.offline or OFFLINE,
    )


def run_replay(options: argparse.Namespace) -> None:
    from recipe.stages import config, replay

    run = _run(options)
    if options.set:  # asking the base takes minutes
        config.check_settings(_preset(options, run), options.set)
    manifest = stage.read_manifest(run.folder("data"))
    if manifest and results.of(manifest, DataResults).mode == "tutorial":
        stage.say("replay", "not needed: the tutorial has none")
        return
    languages = parse_languages(options.languages)
    replay.make(run.replay(options.model, languages), model=run.model(options.model), languages=languages)


def run_config(options: argparse.Namespace) -> None:
    from recipe.stages import config
    from recipe.training import builtin_configs

    if options.list is not None:
        print("\n".join(builtin_configs.names_of_builtin(options.list)))
        return
    if options.settings:
        print(config.settings_help(options.preset or "fast"))
        return
    if options.copy is not None:
        print(builtin_configs.copy_builtin(options.copy, options.to))
        return
    run = _run(options)
    hardware.refuse_card(options.preset)
    check_gpus(options.gpus)
    data = results.of(stage.require(run.folder("data"), "data"), DataResults)
    config.make(
        run.folder("config"),
        preset=_preset(options, run),
        model=run.model(options.model),
        data_folder=run.folder("data"),
        replay_folder=run.replay(options.model, data.languages),
        settings=options.set,
        seed=options.seed,
        processes=options.gpus * options.nnodes,
    )


def _preset(options: argparse.Namespace, run: Run) -> str:
    return options.preset or default_preset(options.model, run.model(options.model))


@cache  # `replay` and `config` of a quickstart ask alike
def default_preset(model: str, folder: Path) -> str:
    """The preset for a model that nobody chose one for: the quickest that fits the card, or the CPU's memory.

    Args:
        model: as MODEL names it.
        folder: of the converted model.
    """
    from recipe.device import cpu_memory, gpu_memory, has_gpu
    from recipe.stages import config
    from recipe.training import memory
    from recipe.training.without_gpu import for_cpu

    if model == "miniature":
        return "miniature"
    stage.require(folder, "model")
    fast = config.load_preset("fast")
    if not has_gpu():
        for_cpu(fast, precision.on_cpu(folder))
    needed = memory.predict(fast, folder)
    there = gpu_memory() if has_gpu() else cpu_memory()
    fits = needed is not None and (needed.total >> 20) + RESERVED_MIB <= (there or 0)
    return "fast" if fits else "qlora"


def run_train(options: argparse.Namespace) -> None:
    from recipe.stages import config, train
    from recipe.training.rendezvous import Machines

    run = _run(options)
    check_gpus(options.gpus)
    machines = Machines(options.gpus, options.nnodes, options.node_rank, options.master_addr, options.master_port)
    if options.config is None and (resolved := stage.read_manifest(run.folder("config"))):
        plan = results.of(resolved, ConfigResults)
        if base := stage.read_manifest(ROOT / plan.model):
            computes = precision.on_cpu(ROOT / plan.model) if plan.preset == "fast" else "float32"
            hardware.warn_of_hours(results.of(base, ModelResults).parameters, plan.forecast.trained_tokens, computes)
    train_here = partial(train.make, command=training_command(options), tracker=options.track)
    make = train.join if machines.rank else train_here
    make(
        run.folder("train"),
        config=options.config or run.folder("config") / config.FILE,
        resume=options.resume,
        deepspeed=options.deepspeed,
        machines=machines,
        program=options.config is not None,
    )


def run_convert(options: argparse.Namespace) -> None:
    from recipe.stages import convert

    run = _run(options)
    convert.make(run.folder("adapter"), train_folder=run.folder("train"), checkpoint=options.checkpoint)


def run_merge(options: argparse.Namespace) -> None:
    from recipe.stages import merge

    run = _run(options)
    merge.make(
        run.folder("merged"),
        adapter_folder=run.folder("adapter"),
        identity_names=_taught_names(run.folder("data")),
        max_shard_size=options.max_shard_size,
        device=options.device,
    )


def _taught_names(folder: Path) -> tuple[str, ...]:
    """The names that the rows of a folder of stage `data` teach; none where there is no folder."""
    from recipe.corpus.identity import read_identity

    if manifest := stage.read_manifest(folder):
        stage.refuse_changed(folder, manifest)
    taught = manifest is not None and results.of(manifest, DataResults).identity_taught
    return read_identity(folder).names if taught else ()


def run_eval(options: argparse.Namespace) -> None:
    from recipe import report
    from recipe.corpus.identity import read_identity
    from recipe.evaluation import comparison, metrics
    from recipe.stages import convert, evaluate

    run = _run(options)
    stage.require(run.folder("data"), "data")
    model, _ = convert.trained_with(run.folder("train"))
    tuned = run.folder("merged") if stage.read_manifest(run.folder("merged")) else run.folder("adapter")
    stage.require(tuned, "merge")
    evaluated = stage.read_manifest(run.folder("eval"))
    manifest = evaluate.make(
        run.folder("eval"),
        model=model,
        train_folder=run.folder("train"),
        tuned_folder=tuned,
        data_folder=run.folder("data"),
        identity=read_identity(run.folder("data")),
    )
    if options.before and manifest == evaluated and not evaluate.failed_checks(run.folder("eval")):
        return  # shown when it was measured; now the user waits for what another verb shows
    print(printable(comparison.table(metrics.read(run.folder("eval")))), flush=True)
    run_report(options)  # before the verdict: a result that fails needs its report most
    print(f"\n{next_steps(run.name, stage.shown(model), run.work)}", flush=True)
    evaluate.refuse_below_thresholds(run.folder("eval"), page=run.folder("report") / report.PAGE)


def run_report(options: argparse.Namespace) -> None:
    from recipe import report

    run = _run(options)
    report.make(run.folder("report"), run_folder=run.work / run.name)
    print(f"\n报告 report:  {stage.shown(run.folder('report') / report.PAGE)}", flush=True)


def run_ablation(options: argparse.Namespace) -> None:
    from recipe.experiments import ablation

    run = _run(options)
    ablation.make(run.folder("ablation"), work=run.work, run=run.name, parts=options.parts)
    run_report(options)


def run_export(options: argparse.Namespace) -> None:
    from recipe.stages import export

    run = _run(options)
    export.make(run.folder("export"), model=run.folder("merged"), identity_names=_taught_names(run.folder("data")))


def run_gguf(options: argparse.Namespace) -> None:
    from recipe.stages import gguf

    run = _run(options)
    merged, evaluation = run.folder("merged"), run.folder("eval")
    manifest = gguf.make(
        run.folder("gguf"), model=merged, run=run.name, evaluation=evaluation, unverified=options.unverified
    )
    if scores := gguf.scores_beside(manifest, evaluation):
        stage.say("gguf", gguf.verdict(scores, evaluation))
        run_report(options)


def run_publish(options: argparse.Namespace) -> None:
    from recipe.stages import publish

    run = _run(options)
    if not options.repo:
        raise RecipeError("REPO is missing; say where it goes, for example REPO=alice/my-assistant")
    if (options.offline or OFFLINE) and not options.dry_run:
        raise RecipeError("OFFLINE=1 allows no connection: DRY_RUN=1 checks all that needs none")
    data = results.of(stage.require(run.folder("data"), "data"), DataResults)
    lines = publish.make(
        run.folder("publish"),
        run_folder=run.work / run.name,
        artifact=options.artifact,
        target=publish.Target(options.repo, options.hub, private=not options.public),
        names=_taught_names(run.folder("data")),
        languages=data.languages,
        unverified=options.unverified,
        dry_run=options.dry_run,
    )
    print(printable("\n".join(lines)), flush=True)  # the card holds what a base says of itself


def run_speed(options: argparse.Namespace) -> None:
    from recipe.experiments import serving_speed

    run = _run(options)
    model = None if options.random else run.folder("merged")
    if model and options.model is not None:
        model = Path(options.model) if Path(options.model).is_dir() else run.model(options.model)
    elif model:
        stage.require(model, "merge")
    print(serving_speed.table(serving_speed.run(model)), flush=True)


def run_quickstart(options: argparse.Namespace) -> None:
    """Every stage, in one process: importing the libraries takes longer than most of them.

    Of several machines the first goes on after the training; the others have nothing to go on with.
    """
    for verb in table.BEFORE_EVAL:
        COMMANDS[verb](options)
        choices.save(options, options.work / options.run)
        if options.until == verb or (verb == "train" and options.node_rank):
            return
    run_eval(options)


Command = Callable[[argparse.Namespace], None]
COMMANDS: dict[str, Command] = {
    "data": run_data,
    "model": run_model,
    "replay": run_replay,
    "config": run_config,
    "train": run_train,
    "convert": run_convert,
    "merge": run_merge,
    "eval": run_eval,
    "report": run_report,
    "ablation": run_ablation,
    "export": run_export,
    "gguf": run_gguf,
    "publish": run_publish,
    "chat": run_chat,
    "demo": run_demo,
    "api": run_api,
    "speed": run_speed,
    "quickstart": run_quickstart,
    "sweep": run_sweep,
    "bench": run_bench,
}
