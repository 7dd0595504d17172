"""What a report shows, gathered once from the facts of a run and shown by both templates.

Numbers stay numbers: how many digits are shown is the templates' business. A text in both languages is a `Text`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from recipe.evaluation import thresholds
from recipe.report import charts
from recipe.report.background import Background, background
from recipe.report.charts import Caption
from recipe.report.facts import FAULTS, Exchange, Facts
from recipe.report.numbers import Checkpoints, Numbers, checkpoints, not_judged, numbers
from recipe.report.words import WORDS, Text, label, plain, text

# With more that is wrong only the first group of replies starts open: of the others, the line that counts them is
# enough.
OPEN_UP_TO = 12
# The fault that only rows of the user's can have.
OWN_FAULT = "not_learnt"
# Replies in report.md, of which GitHub takes at most 65,536 characters: wrong ones, or some where nothing is wrong.
MOST_WRONG, MOST_RIGHT = 20, 8


@dataclass(frozen=True)
class Header:
    """about: names and values of the run. failed: each number outside what is wanted, and why that may be.

    not_judged: why retention or the name are not, where they are not.
    """

    name: str
    assistant: str | None
    about: Sequence[tuple[Text, str]]
    failed: Sequence[tuple[Text, Text]]
    not_judged: Sequence[Text]
    checks: int


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
        numbers=numbers(facts),
        losses=_losses(losses) if losses else None,
        rate=_rate(rates) if rates else None,
        checkpoints=checkpoints(facts) if facts.metrics.checkpoints else None,
        replies=_replies(facts.exchanges),
        background=background(facts),
    )


def _header(facts: Facts) -> Header:
    config = facts.stages.get("config", {}).get("key", {}).get("settings", {})
    base = facts.result("model", "model") or Path(facts.stages["eval"]["inputs"]["model"]).name
    about = {"run": facts.run, "base_model": base, "preset": config.get("preset"), "seed": config.get("seed")}
    return Header(
        name=facts.name,
        assistant=facts.metrics.identity.assistant,
        about=[(text(key), str(value)) for key, value in about.items() if value is not None],
        failed=[(label(check.metric), _reason(check)) for check in facts.checks if not check.passed],
        not_judged=not_judged(facts),
        checks=len(facts.checks),
    )


def _reason(check: thresholds.Check) -> Text:
    key = f"why_{check.metric}"
    return text(key) if key in WORDS else plain(check.why)


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
        filters={
            name: counts.get(name, 0)
            for name in ("all", "wrong", *(fault for fault in FAULTS if fault != OWN_FAULT or "own" in kinds))
        },
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
