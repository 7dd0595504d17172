"""Stage `ablation`: the same training on other data, to show what each part of the data is for.

Beside a run that was evaluated come two more, of as many iterations with the same preset, seed and identity: on the
tutorial's one sample over and over, and on the balanced rows without replay. With `parts` come more: on the words of
the base's replies instead of its distributions, and without each part of the data. Their numbers are an appendix to the
run's report.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from recipe import files
from recipe.errors import BELOW_THRESHOLDS, INTERRUPTED, RecipeError
from recipe.evaluation.metrics import JUDGED_SUITES, METRICS
from recipe.paths import ROOT
from recipe.pipeline import choices, results, stage
from recipe.pipeline.results import ConfigResults, DataResults, EvalResults, TrainResults, VariantResults
from recipe.stages import config
from recipe.training import resolved_config

FILE = "ablation.json"
# Parts that can be left out: of the identity rows, then of replay (corpus.rows.part_of, corpus.knowledge.replay_parts).
PARTS = ("extended", "injections", "turns", "facts", "persons", "talk", "tasks", "conversations", "beginnings")
# Variant -> the mode and settings that it differs by. In the order of a table: what is taken away comes back.
VARIANTS = {"tutorial": ("tutorial", ()), "no-replay": ("balanced", ("replay_ratio=0",))}
PART_VARIANTS = {"words": ("balanced", ("train_dataloader.dataset.distill=False",))} | {
    f"no-{part}": ("balanced", (f'leave_out=["{part}"]',)) for part in PARTS
}
# Of every variant, and of hardly any other run: it trains to the end, whatever its scores.
ENDLESS = "patience=None"
# Choices of a run that its variants share, as options of the verbs.
SHARED = ("name", "assistant", "author", "languages", "model", "source", "revision", "preset", "seed")


def make(folder: Path, *, work: Path, run: str, parts: bool = False) -> stage.Manifest:
    """Train and evaluate the variants of `run`, as runs RUN-tutorial, RUN-no-replay …, and compare them in `folder`.

    Args:
        folder: of the stage.
        work: folder of all runs.
        run: name of the run that the variants differ from.
        parts: the variants of `PART_VARIANTS` too.

    Raises:
        RecipeError: the run is no run on balanced data, or has no parts to leave out; or a variant failed.
    """
    own = work / run
    _refuse_stale(own)
    noted = results.of(stage.require(own / "data", "data"), DataResults)
    if noted.mode != "balanced":
        raise RecipeError(f"{stage.shown(own)} was not trained on balanced data: there is nothing to take away from it")
    if parts and not noted.extended:
        raise RecipeError(f"{stage.shown(own)} was trained on the miniature's rows, which are not divided into parts")
    chosen = {"model": choices.DEFAULTS["model"]} | choices.read(own / choices.FILE)
    variants = VARIANTS | (PART_VARIANTS if parts else {})
    runs = {variant: f"{run}-{variant}" for variant in variants} | {"balanced": run}
    with stage.working_on("variants", own):
        for variant in variants:
            _refuse_foreign(work / runs[variant])
        for variant, (mode, settings) in variants.items():
            _train(work, runs[variant], own, chosen, mode, settings)

    def compare(out: Path) -> dict[str, dict[str, float]]:
        numbers = {variant: asdict(_compared(work / name)) for variant, name in runs.items()}
        files.write_json(out / FILE, numbers)
        return numbers

    inputs = {variant: work / name / "eval" / stage.MANIFEST for variant, name in runs.items()}
    return stage.run("ablation", folder, inputs=inputs, settings={}, work=compare)


def _train(work: Path, run: str, own: Path, chosen: Mapping[str, Any], mode: str, settings: Sequence[str]) -> None:
    """A quickstart of `run` on other data, as long as the training in `own`. RecipeError: it came to no metrics."""
    shared = [part for key in SHARED if chosen.get(key) is not None for part in (f"--{key}", str(chosen[key]))]
    if mode == "balanced" and chosen.get("data"):
        shared += ["--data", *chosen["data"]]
    settings = [*chosen.get("set", []), *settings, ENDLESS]
    quickstart = ["quickstart", "--work", str(work), "--run", run, "--mode", mode, *shared]
    _call(run, [*quickstart, "--until", "config", "--set", *settings])
    _call(run, [*quickstart, "--set", *settings, *_as_long(work / run, own)])
    stage.require(work / run / "eval", f"ablation RUN={own.name}")
    _refuse_stale(work / run)


def _refuse_foreign(run: Path) -> None:
    """RecipeError where the folder of a variant is a run that no ablation began, which would be lost."""
    if not any(run.glob("[!.]*")):
        return
    try:
        chosen = choices.read(run / choices.FILE)
        begun_here = ENDLESS in chosen.get("set", []) and chosen.get("mode") in ("tutorial", "balanced")
    except RecipeError:
        begun_here = False
    if not begun_here:
        raise RecipeError(
            f"{stage.shown(run)} is a run of its own, whose place a variant would take: rename it (mv "
            f"{stage.shown(run)} {stage.shown(run)}-mine), or remove it with `make clean RUN={run.name}`"
        )


def _as_long(run: Path, own: Path) -> list[str]:
    """What makes the training that `run` is configured for as long as the one in `own` was."""
    iterations = results.of(stage.require(own / "train", "train"), TrainResults).iterations
    resolved = resolved_config.read(run / "config" / config.FILE)
    warm, fall = resolved.param_scheduler
    if not fall.by_epoch:
        return [f"max_iters={iterations}"]
    share = iterations / results.of(stage.require(run / "config", "config"), ConfigResults).forecast.iterations
    return [
        f"max_epochs={fall.end * share}",
        f"param_scheduler.0.end={warm.end * share}",
        f"param_scheduler.1.begin={warm.end * share}",
    ]


def _call(run: str, arguments: Sequence[str]) -> None:
    """A verb of the variant `run` in a process of its own. RecipeError: it failed; a result below the thresholds did
    not."""
    command = [sys.executable, "-m", "recipe", *arguments]
    status = subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, check=False).returncode
    if status in (-signal.SIGINT, INTERRUPTED):
        raise KeyboardInterrupt
    if status not in (0, BELOW_THRESHOLDS):
        raise RecipeError(
            f"the variant {run} failed (exit status {status}), its reason stands above: nothing was compared; "
            f"mend it and run `make ablation` again"
        )


def _refuse_stale(run: Path) -> None:
    """RecipeError where the evaluation of `run` is of another training than the one that its folder holds now."""
    manifest = stage.require(run / "eval", f"eval RUN={run.name}")
    if manifest["key"]["inputs"].get("train") != stage.content_sha256(run / "train"):
        raise RecipeError(
            f"{stage.shown(run / 'eval')} is of another training than {stage.shown(run / 'train')} holds: "
            f"run `make eval RUN={run.name}` first"
        )


def _compared(run: Path) -> VariantResults:
    tuned = results.of(stage.require(run / "eval", "eval"), EvalResults).tuned
    iterations = results.of(stage.require(run / "train", "train"), TrainResults).iterations
    training = results.of(stage.require(run / "config", "config"), ConfigResults).forecast.after(iterations)
    shown = {key: getattr(tuned, key) for key in (*METRICS, *JUDGED_SUITES, "kl_per_token")}
    return VariantResults(**shown, iterations=iterations, trained_tokens=training.trained_tokens)
