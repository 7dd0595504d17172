"""Verb `sweep`: the quickstart for many random names, to show that a result is no accident of one name."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path

from recipe import files
from recipe.corpus.identity import LONGEST_NAME
from recipe.errors import BELOW_THRESHOLDS, BelowThresholdsError, RecipeError
from recipe.evaluation.metrics import METRICS
from recipe.paths import ROOT
from recipe.pipeline import results, stage
from recipe.pipeline.results import ConfigResults, EvalResults, TrainResults
from recipe.stages import evaluate

FILE = "sweep.json"
TABLE = "sweep.md"
_running: list[subprocess.Popen[bytes]] = []


@dataclass(frozen=True)
class Outcome:
    """What one name and seed came to.

    trained_tokens: padding included. of_tutorial: these by what the tutorial trains on for the same name. seconds: of
    the train stage. passed: every threshold, those of the suites too.
    """

    name: str
    seed: int
    identity_hit: float
    identity_leak: float
    retention: float
    trained_tokens: int
    of_tutorial: float
    seconds: float
    passed: bool


def random_names(count: int) -> list[str]:
    """`count` names of 1 to 40 characters, the same ones on every machine: common and rare Chinese, Latin, both."""
    rng = random.Random(2026)
    kinds = (_common, _rare, _latin, lambda rng, n: _common(rng, n - n // 2) + _latin(rng, n // 2))
    names: list[str] = []
    while len(names) < count:
        # Half of them short, as names are; the rest of any length that is allowed.
        length = rng.randint(1, 4) if len(names) % 2 else rng.randint(1, LONGEST_NAME)
        name = kinds[len(names) // 2 % len(kinds)](rng, length)
        if name not in names:
            names.append(name)
    return names


def _common(rng: random.Random, length: int) -> str:
    """GB 2312, first level: the 3,755 most common characters."""
    return "".join(bytes((rng.randint(0xB0, 0xD6), rng.randint(0xA1, 0xFE))).decode("gb2312") for _ in range(length))


def _rare(rng: random.Random, length: int) -> str:
    return "".join(chr(rng.randint(0x4E00, 0x9FA5)) for _ in range(length))


def _latin(rng: random.Random, length: int) -> str:
    words: list[str] = []
    while len(" ".join(words)) < length:
        words.append("".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(rng.randint(2, 9))).capitalize())
    text = " ".join(words)[:length]
    return text[:-1] + "x" if text.endswith(" ") else text


def folder_name(name: str, seed: int) -> str:
    """A run's name: readable where the name is, and one of its own for every name and seed."""
    readable = re.sub(r"[^\w]+", "-", name)[:12].strip("-_") or "name"
    return f"{readable}-{sha256(name.encode()).hexdigest()[:8]}-{seed}"


def _quickstart(work: Path, name: str, seed: int, threads: int, settings: Sequence[str] = ()) -> Outcome:
    """One run in a process of its own, whose output goes to a log beside it. RecipeError: it came to no metrics."""
    run = folder_name(name, seed)
    command = [sys.executable, "-m", "recipe", "quickstart", "--work", str(work), "--run", run]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    with (work / f"{run}.log").open("w", encoding="utf-8") as log:
        process = subprocess.Popen(
            [*command, "--name", name, "--seed", str(seed), "--set", *settings],
            cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip
        _running.append(process)
        status = process.wait()
    manifest = stage.read_manifest(work / run / "eval")
    trained, configured = (stage.read_manifest(work / run / part) for part in ("train", "config"))
    says_why = f"{stage.shown(work / f'{run}.log')} says why"
    if not (manifest and trained and configured):
        raise RecipeError(f"the run for {name!r} came to no result; {says_why}")
    tuned = results.of(manifest, EvalResults).tuned
    scores = {key: getattr(tuned, key) for key in METRICS}
    plan = results.of(configured, ConfigResults)
    training = plan.forecast.after(results.of(trained, TrainResults).iterations)
    share = training.trained_tokens / plan.tutorial_tokens
    passed = not evaluate.failed_checks(work / run / "eval")
    if status != (0 if passed else BELOW_THRESHOLDS):
        raise RecipeError(f"the run for {name!r} failed and its result is an earlier one's; {says_why}")
    return Outcome(
        name, seed, **scores, trained_tokens=training.trained_tokens, of_tutorial=share, seconds=trained["seconds"],
        passed=passed,
    )  # fmt: skip


def table(outcomes: Sequence[Outcome]) -> str:
    """A row a run, and the worst of each number."""
    lines = [f"{'hit':>6}{'leak':>7}{'retention':>11}{'tokens':>9}{'of tutorial':>13}{'train s':>9}  seed  name"]
    lines += [
        f"{o.identity_hit:6.3f}{o.identity_leak:7.3f}{o.retention:11.3f}{o.trained_tokens:9}{o.of_tutorial:13.3f}{o.seconds:9.0f}"
        f"{o.seed:6}  {o.name}{'' if o.passed else '  FAILED'}"
        for o in outcomes
    ]
    hit, leak, kept, most = _worst(outcomes)
    lines.append(f"{hit:6.3f}{leak:7.3f}{kept:11.3f}{'':9}{most:13.3f}{'':15}  worst of {len(outcomes)}")
    return "\n".join(lines)


def markdown(outcomes: Sequence[Outcome]) -> str:
    """A row a name, of its seeds the worst of each number, and the worst of all: for a README or a pull request."""
    by_name: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        by_name.setdefault(outcome.name, []).append(outcome)
    seeds = len({outcome.seed for outcome in outcomes})
    of = f", worst of {seeds} seeds" if seeds > 1 else ""
    lines = [
        f"| name{of} | identity hit | identity leak | retention | of the tutorial's tokens |",
        "|---|---|---|---|---|",
    ]
    lines += [_row(name, several) for name, several in by_name.items()]
    return "\n".join([*lines, _row(f"**worst of {len(outcomes)}**", outcomes)]) + "\n"


def _row(title: str, outcomes: Sequence[Outcome]) -> str:
    hit, leak, kept, share = _worst(outcomes)
    return f"| {title} | {hit:.3f} | {leak:.3f} | {kept:.3f} | {share:.3f} |"


def _worst(outcomes: Sequence[Outcome]) -> tuple[float, float, float, float]:
    """Hit, leak, retention, and the largest share of the tutorial's tokens."""
    hit, leak, kept = (
        f([getattr(o, metric) for o in outcomes]) for f, metric in zip((min, max, min), METRICS, strict=True)
    )
    return hit, leak, kept, max(o.of_tutorial for o in outcomes)


def run(work: Path, *, names: int, seeds: int, jobs: int, settings: Sequence[str] = ()) -> list[Outcome]:
    """The outcomes of `names` random names by `seeds` seeds, `jobs` at a time; also written to `work`/sweep.json, and
    as a table in Markdown to sweep.md.

    settings: overrides of the preset, as SET takes them.

    Runs that are already there are not done again. RecipeError: one came to no metrics; the others are kept.
    """
    work.mkdir(parents=True, exist_ok=True)
    threads = max(1, (os.cpu_count() or 1) // jobs)
    pairs = [(name, seed) for seed in range(seeds) for name in random_names(names)]
    outcomes_of = dict(_all(work, pairs, jobs, threads, settings))
    outcomes = [outcomes_of[key] for key in pairs]
    records = json.dumps([asdict(o) for o in outcomes], ensure_ascii=False, indent=2) + "\n"
    for name, content in ((TABLE, markdown(outcomes)), (FILE, records)):
        files.write_atomically(work / name, content)
    return outcomes


def refuse_below_thresholds(outcomes: Sequence[Outcome], work: Path) -> None:
    """BelowThresholdsError where an outcome of a sweep in `work` did not pass."""
    if failed := sum(not outcome.passed for outcome in outcomes):
        raise BelowThresholdsError(
            f"{failed} of {len(outcomes)} are below the thresholds; their replies are under {stage.shown(work)}"
        )


def _all(
    work: Path, pairs: Sequence[tuple[str, int]], jobs: int, threads: int, settings: Sequence[str]
) -> Iterator[tuple[tuple[str, int], Outcome]]:
    from tqdm import tqdm

    with ThreadPoolExecutor(jobs) as pool:
        waiting = {pool.submit(_quickstart, work, name, seed, threads, settings): (name, seed) for name, seed in pairs}
        try:
            for future in tqdm(as_completed(waiting), total=len(waiting), desc="sweep", unit="name"):
                yield waiting[future], future.result()
        finally:
            for future in waiting:
                future.cancel()
            for process in _running:
                process.terminate()
