"""Verb `sweep`: the quickstart for many names, to show that a result is no accident of one name or one base."""

from __future__ import annotations

import itertools
import os
import queue
import random
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path

from recipe import files
from recipe.cores import cores
from recipe.corpus.identity import LONGEST_NAME
from recipe.device import gpus
from recipe.errors import BELOW_THRESHOLDS, BelowThresholdsError, RecipeError
from recipe.evaluation.metrics import METRICS
from recipe.paths import ROOT
from recipe.pipeline import results, stage
from recipe.pipeline.results import ConfigResults, EvalResults, TrainResults
from recipe.stages import evaluate

FILE = "sweep.json"
TABLE = "sweep.md"
MINIATURE = "miniature"
# For bases that take minutes a run, one name of each kind: common Chinese, rare Chinese, Latin, Latin that is no word.
ONE_OF_EACH = ("剑锋大佬", "媌螎佸賁瘸棨胘渱窀箦", "Xiaoming", "Wl Oncmsrp Nqz")
RANDOM_NAMES = 20
_running: list[subprocess.Popen[bytes]] = []


@dataclass(frozen=True)
class Base:
    """A base to sweep over.

    Attributes:
        model: as MODEL names it.
        languages: as LANGUAGES takes them; None for the model's own.
    """

    model: str
    languages: str | None = None

    @classmethod
    def parse(cls, text: str) -> Base:
        """MODEL, or MODEL=LANGUAGES, as `option_types.base_text` leaves it: a folder's name may hold an equals sign."""
        if Path(text).is_dir():
            return cls(text)
        model, _, languages = text.rpartition("=") if "=" in text else (text, "", "")
        return cls(model, languages or None)


@dataclass(frozen=True)
class Job:
    """One run of a sweep: a base, a name, a seed."""

    base: Base
    name: str
    seed: int


@dataclass(frozen=True)
class Outcome:
    """What one base, name and seed came to.

    The shares and the divergence (nats a token) are those of stage `eval`. trained_tokens: padding included.
    of_tutorial: these by what the tutorial trains on for the same name. seconds: of the train stage. passed: every
    threshold, those of the suites too. model: what the table calls the base.
    """

    model: str
    name: str
    seed: int
    identity_hit: float
    identity_leak: float
    leak_without_name: float
    retention: float
    kl_per_token: float
    multi_turn_hit: float
    injection_hit: float
    trained_tokens: int
    of_tutorial: float
    seconds: float
    passed: bool


@dataclass(frozen=True)
class Column:
    """A number of the tables.

    Attributes:
        title: in Markdown.
        short: in the terminal.
        metric: attribute of `Outcome`.
        form: format of the value.
        highest: whether the highest value is the worst.
    """

    title: str
    short: str
    metric: str
    form: str
    highest: bool


COLUMNS = (
    Column("hit", "hit", "identity_hit", ".3f", highest=False),
    Column("leak", "leak", "identity_leak", ".3f", highest=True),
    Column("leak without the name", "hints", "leak_without_name", ".3f", highest=True),
    Column("retention", "kept", "retention", ".3f", highest=False),
    Column("KL per token", "KL", "kl_per_token", ".3f", highest=True),
    Column("several turns", "turns", "multi_turn_hit", ".3f", highest=False),
    Column("injection", "inject", "injection_hit", ".3f", highest=False),
    Column("tokens", "tokens", "trained_tokens", ",", highest=True),
    Column("of the tutorial's", "share", "of_tutorial", ".3f", highest=True),
    Column("train, seconds", "train s", "seconds", ".0f", highest=True),
)


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


def folder_name(job: Job) -> str:
    """A run's name: readable where the name is, and one of its own for every base, name and seed."""
    readable = re.sub(r"[^\w]+", "-", job.name)[:12].strip("-_") or "name"
    model = [] if job.base.model == MINIATURE else [job.base.model, job.base.languages or ""]
    return f"{readable}-{sha256(' '.join([*model, job.name]).encode()).hexdigest()[:8]}-{job.seed}"


def _quickstart(work: Path, job: Job, threads: int, settings: Sequence[str] = (), gpu: str | None = None) -> Outcome:
    """One run in a process of its own, whose output goes to a log beside it. RecipeError: it came to no metrics."""
    run = folder_name(job)
    command = [sys.executable, "-m", "recipe", "quickstart", "--work", str(work), "--run", run, "--model"]
    command += [job.base.model, *(["--languages", job.base.languages] if job.base.languages else [])]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    environment |= {"CUDA_VISIBLE_DEVICES": gpu} if gpu else {}
    with (work / f"{run}.log").open("w", encoding="utf-8") as log:
        process = subprocess.Popen(
            [*command, "--name", job.name, "--seed", str(job.seed), "--set", *settings],
            cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip
        _running.append(process)
        status = process.wait()
    return _outcome(work, job, status)


def _outcome(work: Path, job: Job, status: int) -> Outcome:
    """What a run that ended with `status` came to. RecipeError: no metrics, or those of an earlier run."""
    run = folder_name(job)
    trained, configured, manifest = (stage.read_manifest(work / run / part) for part in ("train", "config", "eval"))
    says_why = f"{stage.shown(work / f'{run}.log')} says why"
    if not (manifest and trained and configured):
        raise RecipeError(f"the run for {job.name!r} came to no result; {says_why}")
    stage.refuse_changed(work / run / "eval", manifest)
    tuned = results.of(manifest, EvalResults).tuned
    plan = results.of(configured, ConfigResults)
    training = plan.forecast.after(results.of(trained, TrainResults).iterations)
    passed = not evaluate.failed_checks(work / run / "eval")
    if status != (0 if passed else BELOW_THRESHOLDS):
        raise RecipeError(f"the run for {job.name!r} failed and its result is an earlier one's; {says_why}")
    more = ("leak_without_name", "kl_per_token", "multi_turn_hit", "injection_hit")
    return Outcome(
        Path(job.base.model).name, job.name, job.seed, **{key: getattr(tuned, key) for key in (*METRICS, *more)},
        trained_tokens=training.trained_tokens, of_tutorial=training.trained_tokens / plan.tutorial_tokens,
        seconds=trained["seconds"], passed=passed,
    )  # fmt: skip


def table(outcomes: Sequence[Outcome]) -> str:
    """A row a run, and the worst of each number, for the terminal."""
    lines = ["".join(f"{column.short:>9}" for column in COLUMNS) + "  seed  base, name"]
    for outcome in outcomes:
        numbers = "".join(f"{_text(column, [outcome]):>9}" for column in COLUMNS)
        failed = "" if outcome.passed else "  FAILED"
        lines.append(f"{numbers}{outcome.seed:6}  {outcome.model}, {outcome.name}{failed}")
    worst = "".join(f"{_text(column, outcomes):>9}" for column in COLUMNS)
    return "\n".join([*lines, f"{worst}        worst of {len(outcomes)}"])


def markdown(outcomes: Sequence[Outcome]) -> str:
    """A row a base and name, of its seeds the worst of each number, and the worst of each base: for a README."""
    seeds = len({outcome.seed for outcome in outcomes})
    of = f", worst of {seeds} seeds" if seeds > 1 else ""
    lines = [
        f"| base | name{of} | {' | '.join(column.title for column in COLUMNS)} |",
        "|---" * (2 + len(COLUMNS)) + "|",
    ]
    for model in dict.fromkeys(outcome.model for outcome in outcomes):
        runs = [outcome for outcome in outcomes if outcome.model == model]
        for name in dict.fromkeys(outcome.name for outcome in runs):
            lines.append(_row(model, name, [outcome for outcome in runs if outcome.name == name]))
        lines.append(_row(model, f"**worst of {len(runs)}**", runs))
    return "\n".join(lines) + "\n"


def _row(model: str, title: str, outcomes: Sequence[Outcome]) -> str:
    return f"| {model} | {title} | {' | '.join(_text(column, outcomes) for column in COLUMNS)} |"


def _text(column: Column, outcomes: Sequence[Outcome]) -> str:
    """The worst of a number over some runs."""
    worst = (max if column.highest else min)(getattr(outcome, column.metric) for outcome in outcomes)
    return f"{worst:{column.form}}"


def jobs_of(bases: Sequence[Base], names: int | None, seeds: int) -> list[Job]:
    """The runs of a sweep.

    Args:
        bases: to tune.
        names: how many random names; None for `RANDOM_NAMES` on the miniature and `ONE_OF_EACH` on any other base.
        seeds: of each name.
    """
    return [
        Job(base, name, seed)
        for base in bases
        for seed in range(seeds)
        for name in (ONE_OF_EACH if names is None and base.model != MINIATURE else random_names(names or RANDOM_NAMES))
    ]


def run(work: Path, planned: Sequence[Job], *, jobs: int, settings: Sequence[str] = ()) -> list[Outcome]:
    """Do all runs, and write what they came to.

    Args:
        work: folder of the sweep; gets sweep.json and, as a table in Markdown, sweep.md. Runs that are already there
            are not done again.
        planned: the runs.
        jobs: how many at a time; each has its part of the cores, and one of the GPUs where there are any.
        settings: overrides of the preset, as SET takes them.

    Returns:
        The outcomes, in the order of `planned`.

    Raises:
        RecipeError: a run came to no metrics; the others are kept.
    """
    work.mkdir(parents=True, exist_ok=True)
    threads = max(1, cores() // jobs)
    outcomes_of = dict(_all(work, planned, jobs, threads, settings))
    titles = titles_of({job.base for job in planned})
    outcomes = [replace(outcomes_of[job], model=titles[job.base]) for job in planned]
    records = [asdict(outcome) for outcome in outcomes]
    for name, content in ((TABLE, markdown(outcomes)), (FILE, files.json_text(records))):
        files.write_atomically(work / name, content)
    return outcomes


def titles_of(bases: Collection[Base]) -> dict[Base, str]:
    """What a table calls each base: the last part of its name, or all of it where several share that."""
    titles = {base: Path(base.model).name for base in bases}
    for full in (lambda base: base.model, lambda base: f"{base.model}={base.languages or ''}".rstrip("=")):
        counts = Counter(titles.values())
        titles = {base: title if counts[title] == 1 else full(base) for base, title in titles.items()}
    return titles


def refuse_below_thresholds(outcomes: Sequence[Outcome], work: Path) -> None:
    """BelowThresholdsError where an outcome of a sweep in `work` did not pass."""
    if failed := sum(not outcome.passed for outcome in outcomes):
        raise BelowThresholdsError(
            f"{failed} of {len(outcomes)} are below the thresholds; their replies are under {stage.shown(work)}"
        )


def _all(
    work: Path, planned: Sequence[Job], jobs: int, threads: int, settings: Sequence[str]
) -> Iterator[tuple[Job, Outcome]]:
    from tqdm import tqdm

    free: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    devices: list[str | None] = [*gpus()] or [None]
    for _, gpu in zip(range(jobs), itertools.cycle(devices), strict=False):
        free.put(gpu)

    def one(job: Job) -> Outcome:
        gpu = free.get()
        try:
            return _quickstart(work, job, threads, settings, gpu)
        finally:
            free.put(gpu)

    with ThreadPoolExecutor(jobs) as pool:
        waiting = {pool.submit(one, job): job for job in planned}
        try:
            for future in tqdm(as_completed(waiting), total=len(waiting), desc="sweep", unit="run"):
                yield waiting[future], future.result()
        finally:
            for future in waiting:
                future.cancel()
            for process in _running:
                process.terminate()
