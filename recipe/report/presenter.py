"""What a report shows, gathered once from the facts of a run and shown by both templates.

Numbers stay numbers: how many digits are shown is the templates' business. A text in both languages is a `Text`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipe.evaluation import thresholds
from recipe.evaluation.scoring import TOLERANCE
from recipe.report import charts
from recipe.report.background import Background, background
from recipe.report.charts import Caption
from recipe.report.facts import COUNTS, FAULTS, METRICS, Exchange, Facts
from recipe.report.words import WORDS, Text, label, plain, text

# With more that is wrong only the first group of replies starts open: of the others, the line that counts them is
# enough.
OPEN_UP_TO = 12
FILTERS = ("all", "wrong", "missed", "leaked", "forgotten")
# Replies in report.md, of which GitHub takes at most 65,536 characters: wrong ones, or some where nothing is wrong.
MOST_WRONG, MOST_RIGHT = 20, 8


@dataclass(frozen=True)
class Header:
    """about: names and values of the run. failed: each number outside what is wanted, and why that may be."""

    name: str
    assistant: str | None
    about: Sequence[tuple[Text, str]]
    failed: Sequence[tuple[Text, Text]]
    checks: int


@dataclass(frozen=True)
class Measure:
    """A share that was measured with its interval of confidence: of `count` replies, `hits` count for it.

    wanted, passed: None where it is not judged. base, gauge: None where it is one of the suites.
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
    """measures: the three metrics. suites: measured besides. divergence, worst: KL from the base, nats a token.

    stops: of all `replies`, those that end badly: (what, of the base, of the tuned model).
    """

    measures: Sequence[Measure]
    suites: Sequence[Measure]
    divergence: float
    worst: float
    tokens: int
    stops: Sequence[tuple[Text, int, int]]
    replies: int


@dataclass(frozen=True)
class Losses:
    """The training loss. window: how many values the smooth line averages. log: whether its axis is logarithmic."""

    chart: charts.Curve
    window: int
    log: bool
    first: float
    last: float
    sparkline: str


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


@dataclass(frozen=True)
class Group:
    """Replies to prompts of one kind, the wrong ones first. faults: how many there are of each."""

    label: Text
    exchanges: Sequence[Exchange]
    faults: Mapping[str, int]
    open: bool


@dataclass(frozen=True)
class Replies:
    """filters: how many replies each leaves. sample: a few for report.md, after which `more` are wrong."""

    count: int
    filters: Mapping[str, int]
    groups: Sequence[Group]
    sample: Sequence[Exchange]
    more: int


@dataclass(frozen=True)
class Report:
    """All of it, from top to bottom; None where a run has no such part."""

    header: Header
    numbers: Numbers
    losses: Losses | None
    rate: charts.Curve | None
    checkpoints: Checkpoints | None
    replies: Replies
    background: Background


def present(facts: Facts) -> Report:
    """Gather what is shown of a run.

    Args:
        facts: what the folders of the run say.

    Returns:
        Everything that either template shows: numbers unrounded, shares from 0 to 1.
    """
    losses = [(record["step"], record["loss"]) for record in facts.losses]
    rates = [(record["step"], record["lr"]) for record in facts.losses if "lr" in record]
    return Report(
        header=_header(facts),
        numbers=_numbers(facts),
        losses=_losses(losses) if losses else None,
        rate=_rate(rates) if rates else None,
        checkpoints=_checkpoints(facts) if facts.metrics["checkpoints"] else None,
        replies=_replies(facts.exchanges),
        background=background(facts),
    )


def _header(facts: Facts) -> Header:
    config = facts.stages.get("config", {}).get("key", {}).get("settings", {})
    base = facts.result("model", "model") or Path(facts.stages["eval"]["inputs"]["model"]).name
    about = {"run": facts.run, "base_model": base, "preset": config.get("preset"), "seed": config.get("seed")}
    return Header(
        name=facts.name,
        assistant=facts.metrics["identity"].get("assistant"),
        about=[(text(key), str(value)) for key, value in about.items() if value is not None],
        failed=[(label(check.metric), _reason(check)) for check in facts.checks if not check.passed],
        checks=len(facts.checks),
    )


def _reason(check: thresholds.Check) -> Text:
    key = f"why_{check.metric}"
    return text(key) if key in WORDS else plain(check.why)


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


def _numbers(facts: Facts) -> Numbers:
    base, tuned = facts.metrics["base"], facts.metrics["tuned"]
    judged = {check.metric: check for check in facts.checks}
    return Numbers(
        measures=[_measure(check, base, tuned) for check in facts.checks if check.metric in METRICS],
        suites=[_suite(name, suite, judged.get(name)) for name, suite in tuned["suites"].items()],
        divergence=tuned["kl_per_token"],
        worst=tuned["kl_worst"],
        tokens=tuned["kl_tokens"],
        stops=[
            (text(key), base["counts"][key], tuned["counts"][key]) for key in ("unstopped_replies", "looping_replies")
        ],
        replies=len(tuned["replies"]),
    )


def _measure(check: thresholds.Check, base: Mapping[str, Any], tuned: Mapping[str, Any]) -> Measure:
    metric, wanted = check.metric, _wanted(check)
    at_least, limit = _limit(check)
    hits, count = (tuned["counts"][key] for key in COUNTS[metric])
    low, high = tuned[f"{metric}_ci"]
    description = f"{text('base')} {base[metric]:.3f}, {text('tuned')} {check.value:.3f}, {text('wanted')} {wanted}"
    gauge = charts.gauge(
        base[metric],
        check.value,
        caption=Caption(f"gauge-{metric}", label(metric), plain(description)),
        wanted=limit,
        at_least=at_least,
        good=check.passed,
        interval=(low, high),
    )
    return Measure(
        key=metric, label=label(metric), about=_about(metric), value=check.value, hits=hits, count=count,
        interval=(low, high), wanted=wanted, passed=check.passed, base=base[metric], gauge=gauge,
    )  # fmt: skip


def _suite(name: str, suite: Mapping[str, Any], check: thresholds.Check | None) -> Measure:
    low, high = suite["ci"]
    return Measure(
        key=name, label=label(name), about=_about(name), value=suite["value"], hits=suite["hits"],
        count=suite["count"], interval=(low, high), wanted=_wanted(check) if check else None,
        passed=check.passed if check else None,
    )  # fmt: skip


def _losses(points: charts.Points) -> Losses:
    values = [loss for _, loss in points]
    description = text(
        "loss_desc", first=f"{points[0][0]:g}", last=f"{points[-1][0]:g}", start=f"{values[0]:.3g}",
        end=f"{values[-1]:.3g}", points=len(points),
    )  # fmt: skip
    caption = Caption("loss", text("loss"), description)
    return Losses(
        chart=charts.curve(points, caption=caption, unit=text("step"), smoothed=True),
        window=charts.window(len(points)),
        log=charts.is_log(values),
        first=values[0],
        last=values[-1],
        sparkline=charts.sparkline(values),
    )


def _rate(points: charts.Points) -> charts.Curve:
    peak = charts.number(max(rate for _, rate in points))
    description = text(
        "lr_desc", first=f"{points[0][0]:g}", last=f"{points[-1][0]:g}", peak=peak, points=len(points)
    )  # fmt: skip
    return charts.curve(points, caption=Caption("lr", text("lr"), description), unit=text("step"), smoothed=False)


def _checkpoints(facts: Facts) -> Checkpoints:
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
        good = {judged.metric: judged.passed for judged in thresholds.verdict(scores)}[metric]
        columns.append(charts.Scored(plain(name.removeprefix("iter_")), scores[metric], good,
                                     name == facts.converted, _interval(scores, metric)))  # fmt: skip
    values = ", ".join(f"{name} {scores[metric]:.3f}" for name, scores in scored.items())
    description = text("over_desc", metric=text(metric), values=values, wanted=_wanted(check))
    caption = Caption(f"over-{metric}", text(metric), description)
    return charts.scores(columns, caption=caption, wanted=limit, at_least=at_least)


def _replies(exchanges: Sequence[Exchange]) -> Replies:
    wrong = [exchange for exchange in exchanges if exchange.faults]
    counts = {"all": len(exchanges), "wrong": len(wrong)} | _faults(exchanges)
    kinds: dict[str, list[Exchange]] = {}
    for exchange in exchanges:
        kinds.setdefault(exchange.kind, []).append(exchange)
    groups: list[Group] = []
    for kind, alike in kinds.items():
        faults = _faults(alike)
        opened = bool(faults) and (not groups or len(wrong) <= OPEN_UP_TO)
        ordered = sorted(alike, key=lambda exchange: not exchange.faults)
        groups.append(Group(label(kind, "kind_"), ordered, faults, opened))
    sample = _spread(wrong, MOST_WRONG) if wrong else _spread(exchanges, MOST_RIGHT)
    return Replies(
        count=len(exchanges),
        filters={name: counts.get(name, 0) for name in FILTERS},
        groups=groups,
        sample=sample,
        more=len(wrong) - len(sample) if wrong else 0,
    )


def _faults(exchanges: Sequence[Exchange]) -> dict[str, int]:
    counts = Counter(fault for exchange in exchanges for fault in exchange.faults)
    return {fault: counts[fault] for fault in FAULTS if counts[fault]}


def _spread(exchanges: Sequence[Exchange], count: int) -> list[Exchange]:
    """The first of every kind, then the second of every kind, and so on, in the order they were asked."""
    seen: Counter[str] = Counter()
    ranked = []
    for i, exchange in enumerate(exchanges):
        seen[exchange.kind] += 1
        ranked.append((seen[exchange.kind], i))
    return [exchanges[i] for i in sorted(i for _, i in sorted(ranked)[:count])]
