"""Curves as inline SVG: they need no library and no network, scale with the page and take its colours from page.css.

Each has a title and a description for those who do not see it, and marks of different shape, not of colour alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from recipe.report.markup import Html, tag

Points = Sequence[tuple[float, float]]

# Of a curve, in units that page.css makes about a pixel each; the narrower charts stand three in a row.
WIDTH, HEIGHT = 440, 220
NARROW = 300
# Labels in a row that do not touch.
ROOM = 6
LEFT, RIGHT, TOP, BOTTOM = 60, 14, 14, 28
# Where the largest value is so many times the smallest, a linear axis would show only the first steps of a training.
LOG_FROM = 20


@dataclass(frozen=True)
class Scored:
    """A column of `scores`: the base or one checkpoint. interval: of confidence, where one was measured."""

    label: Html
    value: float
    good: bool | None
    chosen: bool = False
    interval: tuple[float, float] | None = None


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


def ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Round numbers from low to high, near `about` of them."""
    if high <= low:
        return [low]
    raw = (high - low) / about
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


def _svg(*children: str, title: str, desc: str, name: str, width: int = WIDTH, height: int = HEIGHT) -> Html:
    return tag(
        "svg",
        tag("title", title, id=f"{name}-title"),
        tag("desc", desc, id=f"{name}-desc"),
        *children,
        viewBox=f"0 0 {width} {height}",
        role="img",
        aria_labelledby=f"{name}-title {name}-desc",
    )


def _points(points: Points, x: Callable[[float], float], y: Callable[[float], float]) -> str:
    return " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in points)


def curve(name: str, points: Points, *, title: str, desc: str, unit: Html, smoothed: bool) -> Html:
    """One value over the steps of the training, as a thin line and, if wanted, a smooth one over it."""
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

    grid = []
    for tick in log_ticks(low, high) if logarithmic else ticks(low, high):
        grid += [
            tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=f"{y(tick):.1f}", y2=f"{y(tick):.1f}", class_="grid"),
            tag("text", number(tick), x=LEFT - 8, y=f"{y(tick) + 4:.1f}", class_="end"),
        ]
    for tick in ticks(0, last):
        grid.append(tag("text", number(tick), x=f"{x(tick):.1f}", y=HEIGHT - BOTTOM + 20, class_="middle"))
    floor = HEIGHT - BOTTOM
    grid.append(tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=floor, y2=floor, class_="axis"))
    grid.append(tag("g", unit, class_="end", transform=f"translate({LEFT - 16} {HEIGHT - BOTTOM + 20})"))
    lines = [tag("polyline", points=_points(points, x, y), class_="raw" if smoothed else "line")]
    if smoothed:
        lines.append(tag("polyline", points=_points(smooth(points), x, y), class_="smooth"))
    return _svg(*grid, *lines, title=title, desc=desc, name=name)


def scores(name: str, columns: Sequence[Scored], *, wanted: float, at_least: bool, title: str, desc: str) -> Html:
    """A share from 0 to 1 for the base and every checkpoint, a column each, with the line that it must reach."""
    height, left, right, top, floor = 160, 30, 24, 16, 128
    step = (NARROW - left - right) / max(1, len(columns) - 1)

    def x(i: int) -> float:
        return left + 22 + i * (step - 22 / max(1, len(columns) - 1))

    def y(value: float) -> float:
        return floor - value * (floor - top)

    edge = y(wanted)
    zone = (top, edge) if at_least else (edge, floor)
    parts = [
        tag("rect", x=left, width=NARROW - left, y=f"{zone[0]:.1f}", height=f"{zone[1] - zone[0]:.1f}", class_="zone"),
        *(tag("line", x1=left, x2=NARROW, y1=f"{y(v):.1f}", y2=f"{y(v):.1f}", class_="grid") for v in (0, 0.5, 1)),
        *(tag("text", number(v), x=left - 8, y=f"{y(v) + 4:.1f}", class_="end") for v in (0, 0.5, 1)),
        tag("line", x1=left, x2=NARROW, y1=f"{edge:.1f}", y2=f"{edge:.1f}", class_="threshold"),
        tag("polyline", points=_points([(i, c.value) for i, c in enumerate(columns)], lambda i: x(int(i)), y),
        class_="path"),
    ]  # fmt: skip
    named, valued = _labelled([column.chosen for column in columns])
    for i, column in enumerate(columns):
        across, up = f"{x(i):.1f}", y(column.value)
        if column.interval:
            low, high = (f"{y(end):.1f}" for end in column.interval)
            parts.append(tag("line", x1=across, x2=across, y1=low, y2=high, class_="interval"))
        if i in valued:
            over = up + (26 if column.value > 0.5 else -14)
            parts.append(tag("text", f"{column.value:.3f}", x=across, y=f"{over:.1f}", class_="middle value"))
        if i in named:
            parts.append(tag("g", column.label, transform=f"translate({across} {height - 8})", class_="middle"))
    for i, column in enumerate(columns):  # over all labels
        if column.chosen:
            parts.append(tag("circle", cx=f"{x(i):.1f}", cy=f"{y(column.value):.1f}", r=9, class_="ring"))
        parts.append(_mark(x(i), y(column.value), column.good))
    return _svg(*parts, title=title, desc=desc, name=name, width=NARROW, height=height)


def _labelled(chosen: Sequence[bool]) -> tuple[set[int], set[int]]:
    """(the columns with a name below, those with their value beside), as many as have room."""
    last = len(chosen) - 1
    if last < ROOM:
        return set(range(last + 1)), set(range(last + 1))
    every = -(-last // (ROOM - 1))
    picked = chosen.index(True) if True in chosen else last
    named = {i for i in range(last, 0, -every) if i >= every and abs(i - picked) >= every}
    return named | {0, picked}, {picked} | ({last} if last - picked >= every else set())


def _mark(across: float, up: float, good: bool | None) -> Html:
    """Within what is wanted, outside of it, or not judged: a disc, a cross, a circle."""
    if good is False:
        arms = f"M{across - 5:.1f} {up - 5:.1f}l10 10m0 -10l-10 10"
        return tag("path", d=arms, class_="mark bad")
    return tag("circle", cx=f"{across:.1f}", cy=f"{up:.1f}", r=5, class_="mark good" if good else "mark")


def gauge(name: str, base: float, tuned: float, *, wanted: float, at_least: bool, good: bool,
          interval: tuple[float, float] | None, title: str, desc: str) -> Html:  # fmt: skip
    """From the base's share to the tuned one's on one line from 0 to 1, with the part that is wanted."""
    height, inset, middle = 32, 8, 16

    def x(value: float) -> float:
        return inset + value * (NARROW - 2 * inset)

    low, high = (wanted, 1.0) if at_least else (0.0, wanted)
    parts = [
        tag("rect", x=inset, width=NARROW - 2 * inset, y=middle - 4, height=8, rx=4, class_="track"),
        tag("rect", x=f"{x(low):.1f}", width=f"{x(high) - x(low):.1f}", y=middle - 12, height=24, class_="zone"),
        tag("line", x1=f"{x(wanted):.1f}", x2=f"{x(wanted):.1f}", y1=middle - 14, y2=middle + 14, class_="threshold"),
        tag("line", x1=f"{x(base):.1f}", x2=f"{x(tuned):.1f}", y1=middle, y2=middle, class_="path"),
    ]
    if interval:
        ends = {"x1": f"{x(interval[0]):.1f}", "x2": f"{x(interval[1]):.1f}"}
        parts.append(tag("line", **ends, y1=middle, y2=middle, class_="interval"))
    parts += [_mark(x(base), middle, None), _mark(x(tuned), middle, good)]
    return _svg(*parts, title=title, desc=desc, name=name, width=NARROW, height=height)
