"""The numbers of a report: what was measured, of the base, the tuned model and every checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from recipe.evaluation import thresholds
from recipe.evaluation.scoring import TOLERANCE, ratio
from recipe.report import charts
from recipe.report.charts import Caption
from recipe.report.facts import COUNTS, METRICS, Facts
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
class Numbers:
    """measures: the three metrics, and own_hit where there are rows of the user's. suites: measured besides.

    divergence, worst: KL from the base, nats a token.
    stops: of all `replies`, those that end badly: (what, of the base, of the tuned model). introductions: prompts that
    no leak is counted for, since the base introduces itself. taught: those that the user's rows answer with the name.
    held_out: of the user's questions, those in a wording that was not trained on; None without such rows.
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
    base, tuned = facts.metrics["base"], facts.metrics["tuned"]
    judged = {check.metric: check for check in facts.checks}
    suites = dict(tuned["suites"])
    if "leak_without_name" in tuned:
        hits, count = (tuned["counts"][key] for key in ("leaks_without_name", "unrelated_prompts"))
        suites = {"leak_without_name": ratio(hits, count), **suites}
    divergence = judged["kl_per_token"]
    return Numbers(
        measures=[
            _measure(metric, judged.get(metric), base, tuned) for metric in (*METRICS, "own_hit") if metric in tuned
        ],
        suites=[_suite(name, suite, judged.get(name)) for name, suite in suites.items()],
        divergence=divergence.value,
        divergence_wanted=_wanted(divergence),
        divergence_passed=divergence.passed,
        worst=tuned["kl_worst"],
        tokens=tuned["kl_tokens"],
        stops=[
            (text(key), base["counts"][key], tuned["counts"][key]) for key in ("unstopped_replies", "looping_replies")
        ],
        replies=len(tuned["replies"]),
        introductions=tuned["counts"].get("base_introductions", 0),
        taught=tuned["counts"].get("taught_prompts", 0),
        held_out=tuned["own_counts"]["own_held_out"] if "own_counts" in tuned else None,
    )


def not_judged(facts: Facts) -> list[Text]:
    """Why retention and the name are not judged, where they are not."""
    tuned, reasons = facts.metrics["tuned"], []
    if not thresholds.judges_retention(tuned):
        known = tuned["counts"]["facts_base_knew"]
        reasons.append(text("retention_not_judged", known=known, least=thresholds.MIN_FACTS_KNOWN))
    if not thresholds.judges_identity(tuned):
        reasons.append(text("identity_not_judged"))
    return reasons


def _limit(check: thresholds.Check) -> tuple[bool, float]:
    """(at least or at most, how much) of a check."""
    sign, number = check.wanted.split()
    return sign == ">=", float(number)


def _wanted(check: thresholds.Check) -> str:
    return check.wanted.replace(">=", "≥").replace("<=", "≤")


def _interval(scored: Mapping[str, Any], metric: str) -> tuple[float, float] | None:
    low_high = scored.get(f"{metric}_ci")
    return (low_high[0], low_high[1]) if low_high else None


def _about(key: str) -> Text | None:
    return text(f"{key}_is") if f"{key}_is" in WORDS else None


def _measure(metric: str, check: thresholds.Check | None, base: Mapping[str, Any], tuned: Mapping[str, Any]) -> Measure:
    counts = tuned["counts"] | tuned.get("own_counts", {})
    hits, count = (counts[key] for key in COUNTS[metric])
    low, high = tuned[f"{metric}_ci"]
    return Measure(
        key=metric, label=label(metric), about=_about(metric), value=tuned[metric], hits=hits, count=count,
        interval=(low, high), wanted=_wanted(check) if check else None, passed=check.passed if check else None,
        base=base[metric], gauge=_gauge(check, base[metric], (low, high)) if check else None,
    )  # fmt: skip


def _gauge(check: thresholds.Check, base: float, interval: tuple[float, float]) -> charts.Gauge:
    at_least, limit = _limit(check)
    wanted = _wanted(check)
    description = f"{text('base')} {base:.3f}, {text('tuned')} {check.value:.3f}, {text('wanted')} {wanted}"
    return charts.gauge(
        base,
        check.value,
        caption=Caption(f"gauge-{check.metric}", label(check.metric), plain(description)),
        wanted=limit,
        at_least=at_least,
        good=check.passed,
        interval=interval,
    )


def _suite(name: str, suite: Mapping[str, Any], check: thresholds.Check | None) -> Measure:
    low, high = suite["ci"]
    return Measure(
        key=name, label=label(name), about=_about(name), value=suite["value"], hits=suite["hits"],
        count=suite["count"], interval=(low, high), wanted=_wanted(check) if check else None,
        passed=check.passed if check else None, base=suite.get("base"),
    )  # fmt: skip


def checkpoints(facts: Facts) -> Checkpoints:
    """The scores of every checkpoint.

    Args:
        facts: of a run whose checkpoints were scored.

    Returns:
        A chart of each metric that is judged, and a row of each checkpoint.
    """
    scored: Mapping[str, Mapping[str, Any]] = facts.metrics["checkpoints"]
    best, converted = facts.metrics["best_checkpoint"], facts.converted
    rows = [
        Checkpoint(
            plain(name),
            [scores[metric] for metric in METRICS],
            [mark for mark, marked in (("best", best), ("converted", converted)) if name == marked],
        )
        for name, scores in scored.items()
    ]
    other = scored.get(converted or "")
    return Checkpoints(
        charts=[
            (check.metric, _over(check, facts), _wanted(check)) for check in facts.checks if check.metric in METRICS
        ],
        base=Checkpoint(text("base"), [facts.metrics["base"][metric] for metric in METRICS], []),
        scored=rows,
        tolerance=TOLERANCE,
        better=best if other and any(other[metric] != scored[best][metric] for metric in METRICS) else None,
    )


def _over(check: thresholds.Check, facts: Facts) -> charts.Scores:
    """One metric of the base and of every checkpoint."""
    metric, scored = check.metric, facts.metrics["checkpoints"]
    at_least, limit = _limit(check)
    columns = [charts.Scored(text("base"), facts.metrics["base"][metric], None)]
    for name, scores in scored.items():
        good = scores[metric] >= limit if at_least else scores[metric] <= limit
        columns.append(charts.Scored(plain(name.removeprefix("iter_")), scores[metric], good,
                                     name == facts.converted, _interval(scores, metric)))  # fmt: skip
    values = ", ".join(f"{name} {scores[metric]:.3f}" for name, scores in scored.items())
    description = text("over_desc", metric=text(metric), values=values, wanted=_wanted(check))
    caption = Caption(f"over-{metric}", text(metric), description)
    return charts.scores(columns, caption=caption, wanted=limit, at_least=at_least)
