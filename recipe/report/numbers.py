"""The numbers of a report: what was measured, of the base, the tuned model and every checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from recipe.evaluation import thresholds
from recipe.evaluation.metrics import METRICS, Share
from recipe.evaluation.scoring import TOLERANCE
from recipe.report import charts
from recipe.report.charts import Caption
from recipe.report.facts import Facts
from recipe.report.words import WORDS, Text, label, plain, text


@dataclass(frozen=True)
class Measure:
    """A share that was measured with its interval of confidence: of `count` replies, `hits` count for it.

    wanted, passed, gauge: None where it is not judged. base: None where the base was not asked.
    """

    key: str
    label: Text
    about: Text | None
    value: float
    hits: int
    count: int
    interval: tuple[float, float]
    wanted: str | None
    passed: bool | None
    base: float | None = None
    gauge: charts.Gauge | None = None


@dataclass(frozen=True)
class FileNumbers:
    """METRICS of the tuned model or of a GGUF file: each with whether it is as wanted, None where it is not judged."""

    label: Text
    values: Sequence[tuple[float, bool | None]]


@dataclass(frozen=True)
class Numbers:
    """measures: the three metrics, and own_hit where there are rows of the user's. suites: measured besides.

    divergence, worst: KL from the base, nats a token.
    stops: of all `replies`, those that end badly: (what, of the base, of the tuned model). introductions: prompts that
    no leak is counted for, since the base introduces itself. taught: those that the user's rows answer with the name.
    held_out: of the user's questions, those in a wording that was not trained on; None without such rows.
    files: the tuned model, then each GGUF file; empty where no file was asked.
    """

    measures: Sequence[Measure]
    suites: Sequence[Measure]
    divergence: float
    divergence_wanted: str
    divergence_passed: bool
    worst: float
    tokens: int
    stops: Sequence[tuple[Text, int, int]]
    replies: int
    introductions: int
    taught: int
    held_out: int | None
    files: Sequence[FileNumbers]


@dataclass(frozen=True)
class Checkpoint:
    """A row of the checkpoints: its three metrics, and which it is: best, converted."""

    label: Text
    values: Sequence[float]
    marks: Sequence[str]


@dataclass(frozen=True)
class Checkpoints:
    """charts: (metric, chart, what is wanted). better: the best checkpoint, where another one was converted."""

    charts: Sequence[tuple[str, charts.Scores, str]]
    base: Checkpoint
    scored: Sequence[Checkpoint]
    tolerance: float
    better: str | None


def numbers(facts: Facts) -> Numbers:
    """What was measured of base and tuned model.

    Args:
        facts: what the folders of the run say.

    Returns:
        Everything that the section of the numbers shows.
    """
    base, tuned = facts.metrics.base, facts.metrics.tuned
    judged = {check.metric: check for check in facts.checks}
    shares = {metric: (base.scores.share(metric), tuned.scores.share(metric)) for metric in METRICS}
    if base.own and tuned.own:
        shares["own_hit"] = base.own.share, tuned.own.share
    suites = dict(tuned.suites)
    if tuned.scores.leak_without_name is not None:
        suites = {"leak_without_name": tuned.scores.share("leak_without_name"), **suites}
    divergence = judged["kl_per_token"]
    return Numbers(
        measures=[
            _measure(metric, judged.get(metric), untuned.value, share) for metric, (untuned, share) in shares.items()
        ],
        suites=[_suite(name, suite, judged.get(name)) for name, suite in suites.items()],
        divergence=divergence.value,
        divergence_wanted=_wanted(divergence),
        divergence_passed=divergence.passed,
        worst=tuned.divergence.kl_worst,
        tokens=tuned.divergence.kl_tokens,
        stops=[
            (text(key), getattr(base.scores.counts, key), getattr(tuned.scores.counts, key))
            for key in ("unstopped_replies", "looping_replies")
        ],
        replies=len(tuned.replies),
        introductions=tuned.scores.counts.base_introductions,
        taught=tuned.scores.counts.taught_prompts,
        held_out=tuned.own.own_counts.own_held_out if tuned.own else None,
        files=_files(facts),
    )


def _files(facts: Facts) -> list[FileNumbers]:
    if not facts.gguf:
        return []
    judged = {check.metric: check for check in facts.checks}
    rows = {text("tuned"): facts.metrics.tuned.scores} | {plain(file): scores for file, scores in facts.gguf.items()}
    return [
        FileNumbers(
            name,
            [(value := getattr(scores, key), judged[key].allows(value) if key in judged else None) for key in METRICS],
        )
        for name, scores in rows.items()
    ]


def not_judged(facts: Facts) -> list[Text]:
    """Why retention and the name are not judged, where they are not."""
    tuned, reasons = facts.metrics.tuned, []
    if not thresholds.judges_retention(tuned):
        count = tuned.scores.counts.facts_base_knew
        reasons.append(text("retention_not_judged", count=count, least=thresholds.MIN_FACTS_KNOWN))
    if not tuned.identity_taught:
        reasons.append(text("identity_not_judged"))
    return reasons


def _wanted(check: thresholds.Check) -> str:
    return check.wanted.replace(">=", "≥").replace("<=", "≤")


def _about(key: str) -> Text | None:
    return text(f"{key}_is") if f"{key}_is" in WORDS else None


def _measure(metric: str, check: thresholds.Check | None, base: float, tuned: Share) -> Measure:
    gauge = _gauge(check, base, tuned.ci) if check else None
    return replace(_suite(metric, tuned, check), base=base, gauge=gauge)


def _gauge(check: thresholds.Check, base: float, interval: tuple[float, float]) -> charts.Gauge:
    wanted = _wanted(check)
    description = f"{text('base')} {base:.3f}, {text('tuned')} {check.value:.3f}, {text('wanted')} {wanted}"
    return charts.gauge(
        base,
        check.value,
        caption=Caption(f"gauge-{check.metric}", label(check.metric), plain(description)),
        wanted=check.limit,
        at_least=check.at_least,
        good=check.passed,
        interval=interval,
    )


def _suite(name: str, suite: Share, check: thresholds.Check | None) -> Measure:
    return Measure(
        key=name, label=label(name), about=_about(name), value=suite.value, hits=suite.hits, count=suite.count,
        interval=suite.ci, wanted=_wanted(check) if check else None, passed=check.passed if check else None,
        base=suite.base,
    )  # fmt: skip


def checkpoints(facts: Facts) -> Checkpoints:
    """The scores of every checkpoint.

    Args:
        facts: of a run whose checkpoints were scored.

    Returns:
        A chart of each metric that is judged, and a row of each checkpoint.
    """
    scored, best, converted = facts.metrics.checkpoints, facts.metrics.best_checkpoint, facts.converted
    values = {name: [scores.share(metric).value for metric in METRICS] for name, scores in scored.items()}
    rows = [
        Checkpoint(
            plain(name),
            values[name],
            [mark for mark, marked in (("best", best), ("converted", converted)) if name == marked],
        )
        for name in scored
    ]
    other = values.get(converted or "")
    return Checkpoints(
        charts=[
            (check.metric, _over(check, facts), _wanted(check)) for check in facts.checks if check.metric in METRICS
        ],
        base=Checkpoint(text("base"), [facts.metrics.base.scores.share(metric).value for metric in METRICS], []),
        scored=rows,
        tolerance=TOLERANCE,
        better=best if other and best and other != values[best] else None,
    )


def _over(check: thresholds.Check, facts: Facts) -> charts.Scores:
    """One metric of the base and of every checkpoint."""
    metric = check.metric
    shares = {name: scores.share(metric) for name, scores in facts.metrics.checkpoints.items()}
    columns = [charts.Scored(text("base"), facts.metrics.base.scores.share(metric).value, None)]
    for name, share in shares.items():
        short = plain(name.removeprefix("iter_"))
        columns.append(charts.Scored(short, share.value, check.allows(share.value), name == facts.converted, share.ci))
    values = ", ".join(f"{name} {share.value:.3f}" for name, share in shares.items())
    description = text("over_desc", metric=text(metric), values=values, wanted=_wanted(check))
    caption = Caption(f"over-{metric}", text(metric), description)
    return charts.scores(columns, caption=caption, wanted=check.limit, at_least=check.at_least)
