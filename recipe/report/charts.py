"""Geometry of the curves that templates/charts.svg.jinja draws: inline SVG needs no library and no network, scales with
the page and takes its colours from page.css.

Coordinates are in units of an SVG's viewBox, which page.css makes about a pixel each, from its upper left corner. Marks
differ in shape, not in colour alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from recipe.report.words import Text

Points = Sequence[tuple[float, float]]

# Of a curve; the narrower charts stand three in a row.
WIDTH, HEIGHT = 440, 220
NARROW = 300
# Labels in a row that do not touch.
ROOM = 6
LEFT, RIGHT, TOP, BOTTOM = 60, 14, 14, 28
# Where the largest value is so many times the smallest, a linear axis would show only the first steps of a training.
LOG_FROM = 20
# Of an axis, about.
TICKS = 4
# Heights of a sparkline, and how many of them it has at the most.
BARS = "▁▂▃▄▅▆▇█"
SPARKLINE = 40


@dataclass(frozen=True)
class Caption:
    """What a chart is called, and what it shows for those who do not see it. name: the stem of its ids."""

    name: str
    title: Text
    description: Text


@dataclass(frozen=True)
class Tick:
    """A labelled place on an axis."""

    at: float
    label: str


@dataclass(frozen=True)
class Curve:
    """One value over the steps of the training. lines: (class, points) of each polyline, as SVG writes points."""

    caption: Caption
    unit: Text
    rows: Sequence[Tick]
    columns: Sequence[Tick]
    lines: Sequence[tuple[str, str]]
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT
    floor: int = HEIGHT - BOTTOM


@dataclass(frozen=True)
class Scored:
    """A column of `scores`: the base or one checkpoint. interval: of confidence, where one was measured."""

    label: Text
    value: float
    good: bool | None
    chosen: bool = False
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class Column:
    """Where a `Scored` stands. label, value: None where they have no room; interval: its two ends."""

    x: float
    y: float
    good: bool | None
    chosen: bool
    interval: tuple[float, float] | None
    label: Text | None
    value: Tick | None


@dataclass(frozen=True)
class Scores:
    """A share from 0 to 1 for the base and every checkpoint, a column each. zone: (top, height) of what is wanted."""

    caption: Caption
    zone: tuple[float, float]
    threshold: float
    rows: Sequence[Tick]
    path: str
    columns: Sequence[Column]
    left: int
    width: int
    height: int


@dataclass(frozen=True)
class Gauge:
    """A share of the base and of the tuned model on one line from 0 to 1. zone: (left, width) of what is wanted."""

    caption: Caption
    zone: tuple[float, float]
    threshold: float
    base: float
    tuned: float
    good: bool
    interval: tuple[float, float]
    inset: int
    middle: int
    width: int
    height: int


def is_log(values: Sequence[float]) -> bool:
    return min(values) > 0 and max(values) / min(values) >= LOG_FROM


def window(count: int) -> int:
    """How many neighbouring values the smooth line averages: odd, a twentieth of the run."""
    return max(3, count // 20 | 1)


def smooth(points: Points) -> list[tuple[float, float]]:
    """The mean of `window` neighbours around each point: unlike a running mean it does not lag behind."""
    half = window(len(points)) // 2
    averaged = []
    for i, (x, _) in enumerate(points):
        reach = min(half, i, len(points) - 1 - i)  # as many on either side
        near = [y for _, y in points[i - reach : i + reach + 1]]
        averaged.append((x, sum(near) / len(near)))
    return averaged


def number(value: float) -> str:
    """Short enough for an axis: 0.5, 12000, 1.5e-4."""
    text = f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    if value and abs(value) < 0.001:
        mantissa, exponent = f"{value:.2e}".split("e")
        text = f"{float(mantissa):g}e{int(exponent)}"
    return text


def ticks(low: float, high: float) -> list[float]:
    """Round numbers from low to high, near TICKS of them."""
    if high <= low:
        return [low]
    raw = (high - low) / TICKS
    unit = 10.0 ** math.floor(math.log10(raw))
    step = unit * next(factor for factor in (1, 2, 5, 10) if factor * unit >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten from low to high, and halves between them where these are too few."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1,), (1, 3), (1, 2, 5)):
        ticks = [f * 10.0**power for power in powers for f in factors if low <= f * 10.0**power <= high]
        if len(ticks) >= 3:
            return ticks
    return ticks


def sparkline(values: Sequence[float]) -> str:
    """Draw values as a line of bars, by their logarithms where they span much.

    Args:
        values: any number of them.

    Returns:
        A character a bar, each the mean of its share of the values; SPARKLINE bars at the most.
    """
    if not values:
        return ""
    width = min(SPARKLINE, len(values))
    means = []
    for i in range(width):
        share = values[i * len(values) // width : (i + 1) * len(values) // width]
        means.append(sum(share) / len(share))
    if is_log(means):
        means = [math.log10(mean) for mean in means]
    low, high = min(means), max(means)
    return "".join(BARS[round((mean - low) / ((high - low) or 1) * (len(BARS) - 1))] for mean in means)


def _points(points: Points, x: Callable[[float], float], y: Callable[[float], float]) -> str:
    return " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in points)


def curve(points: Points, *, caption: Caption, unit: Text, smoothed: bool) -> Curve:
    """Place one value over the steps of the training.

    Args:
        points: (step, value) in the order of the steps, at least one.
        caption: what the chart is called and says.
        unit: of the steps.
        smoothed: whether a smooth line lies over the thin one, and the axis may be logarithmic.

    Returns:
        Axes and lines.
    """
    values = [y for _, y in points]
    last = max(x for x, _ in points)
    logarithmic = is_log(values) and smoothed
    scale: Callable[[float], float] = math.log10 if logarithmic else float
    low, high = (min(values), max(values)) if logarithmic else (0.0, max(values) * 1.04)
    bottom, top = scale(low), scale(high)
    spread = top - bottom or 1.0

    def x(step: float) -> float:
        return LEFT + step / (last or 1) * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        return TOP + (top - scale(value)) / spread * (HEIGHT - TOP - BOTTOM)

    lines = [("raw" if smoothed else "line", _points(points, x, y))]
    if smoothed:
        lines.append(("smooth", _points(smooth(points), x, y)))
    return Curve(
        caption=caption,
        unit=unit,
        rows=[Tick(y(at), number(at)) for at in (log_ticks(low, high) if logarithmic else ticks(low, high))],
        columns=[Tick(x(at), number(at)) for at in ticks(0, last)],
        lines=lines,
    )


def scores(columns: Sequence[Scored], *, caption: Caption, wanted: float, at_least: bool) -> Scores:
    """Place a share of the base and of every checkpoint, a column each.

    Args:
        columns: the base first, then the checkpoints in the order of their steps.
        caption: what the chart is called and says.
        wanted: the limit, from 0 to 1.
        at_least: whether the share must reach the limit, not stay below it.

    Returns:
        Columns, the limit and the zone that is wanted.
    """
    height, left, right, top, floor = 160, 30, 24, 16, 128
    step = (NARROW - left - right) / max(1, len(columns) - 1)

    def x(i: float) -> float:
        return left + 22 + i * (step - 22 / max(1, len(columns) - 1))

    def y(value: float) -> float:
        return floor - value * (floor - top)

    edge = y(wanted)
    named, valued = _labelled([column.chosen for column in columns])
    placed = []
    for i, column in enumerate(columns):
        up = y(column.value)
        value = Tick(up + (26 if column.value > 0.5 else -14), f"{column.value:.3f}") if i in valued else None
        interval = (y(column.interval[0]), y(column.interval[1])) if column.interval else None
        label = column.label if i in named else None
        placed.append(Column(x(i), up, column.good, column.chosen, interval, label, value))
    return Scores(
        caption=caption,
        zone=(top, edge - top) if at_least else (edge, floor - edge),
        threshold=edge,
        rows=[Tick(y(at), number(at)) for at in (0, 0.5, 1)],
        path=_points([(i, column.value) for i, column in enumerate(columns)], x, y),
        columns=placed,
        left=left,
        width=NARROW,
        height=height,
    )


def _labelled(chosen: Sequence[bool]) -> tuple[set[int], set[int]]:
    """(the columns with a name below, those with their value beside), as many as have room."""
    last = len(chosen) - 1
    if last < ROOM:
        return set(range(last + 1)), set(range(last + 1))
    every = -(-last // (ROOM - 1))
    picked = chosen.index(True) if True in chosen else last
    named = {i for i in range(last, 0, -every) if i >= every and abs(i - picked) >= every}
    return named | {0, picked}, {picked} | ({last} if last - picked >= every else set())


def gauge(base: float, tuned: float, *, caption: Caption, wanted: float, at_least: bool, good: bool,
          interval: tuple[float, float]) -> Gauge:  # fmt: skip
    """Place the base's share and the tuned model's on one line.

    Args:
        base: from 0 to 1.
        tuned: from 0 to 1.
        caption: what the chart is called and says.
        wanted: the limit, from 0 to 1.
        at_least: whether the share must reach the limit, not stay below it.
        good: whether the tuned model keeps to it.
        interval: of confidence, of the tuned model's share.

    Returns:
        Both marks, the limit and the zone that is wanted.
    """
    inset = 8

    def x(value: float) -> float:
        return inset + value * (NARROW - 2 * inset)

    low, high = (wanted, 1.0) if at_least else (0.0, wanted)
    return Gauge(
        caption=caption,
        zone=(x(low), x(high) - x(low)),
        threshold=x(wanted),
        base=x(base),
        tuned=x(tuned),
        good=good,
        interval=(x(interval[0]), x(interval[1])),
        inset=inset,
        middle=16,
        width=NARROW,
        height=32,
    )
