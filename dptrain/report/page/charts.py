"""Curves as SVG, with the values that page.js shows under the pointer.

The SVG is stretched to the width of the page, and lines keep their width (vector-effect). Labels are HTML, so they keep
their size on every screen. Colors come from page.css, so curves follow dark mode and print.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

from dptrain.report.page.history import Line, number
from dptrain.report.page.markup import Html, element, join

MOST_POINTS = 500  # of a curve; neighbours are averaged beyond it
DOTTED = 30  # a curve with at most so many points shows them
WIDTH, HEIGHT = 1000, 400
OUTLIERS = 0.02  # share of a background curve that may lie outside at each end


@dataclass(frozen=True)
class Curve:
    """Values `y` at `x`, counted in epochs, and the `steps` of the points; `style` is a class of page.css.

    A `background` curve is drawn thin. It decides the range of the axis only without its highest and lowest values.
    """

    name: str
    style: str
    x: Sequence[float]
    y: Sequence[float]
    steps: Sequence[int]
    background: bool = False


@dataclass(frozen=True)
class Axis:
    """How values are written: times `scale`, with `digits` decimals, then `unit`. With `zero` the axis begins at 0."""

    digits: int
    scale: float = 1
    unit: str = ""
    zero: bool = False

    def text(self, value: float) -> str:
        return f"{value * self.scale:,.{self.digits}f}{self.unit}"


def fitting_axis(values: Sequence[float]) -> Axis:
    """An axis that gives the largest value four significant digits, such as 0.8125, or 2.083e-5."""
    largest = max(map(abs, values), default=0.0)
    power = math.floor(math.log10(largest)) if largest else 0
    if -4 <= power <= 5:
        return Axis(max(0, 3 - power))
    power = max(-308, power)  # 10.0**308 is the largest power of ten
    return Axis(3, scale=10.0**-power, unit=f"e{power}")


def curve(name: str, style: str, lines: Sequence[Line], key: str, per_epoch: int, *, background: bool = False) -> Curve:
    """The curve of a key of lines of metrics.jsonl; lines without it are left out. x is the step if no epoch is known.

    A background curve of many points has means of as many neighbours as needed.
    """
    found = [(line["step"], value) for line in lines if (value := number(line, key)) is not None]
    together = max(1, math.ceil(len(found) / MOST_POINTS)) if background else 1
    if together > 1:
        groups = [found[start : start + together] for start in range(0, len(found), together)]
        found = [(group[len(group) // 2][0], sum(value for _, value in group) / len(group)) for group in groups]
        name = f"{name}, mean of {together}"
    steps = [step for step, _ in found]
    x = [step / (per_epoch or 1) for step in steps]
    return Curve(name, style, x, [value for _, value in found], steps, background)


def chart(title: str, curves: Sequence[Curve], axis: Axis, *, per_epoch: int) -> Html:
    """A figure with all curves that have points; empty if none has."""
    curves = [one for one in curves if one.y]
    if not curves:
        return Html("")
    low, high = _range(curves, axis)
    first, last = _ends([0.0, *(value for one in curves for value in one.x)])
    across = [value for value in ticks(first, last, 6, least=1) if first <= value <= last]
    up = [value for value in ticks(low, high, 5) if low <= value <= high]

    def left(x: float) -> float:
        return (x - first) / (last - first)

    def top(y: float) -> float:
        return 1 - (y - low) / (high - low)

    grid = (element("line", x1=0, x2=WIDTH, y1=f"{HEIGHT * top(y):.1f}", y2=f"{HEIGHT * top(y):.1f}") for y in up)
    paths = (_path(one, [(left(x), top(y)) for x, y in zip(one.x, one.y, strict=True)]) for one in curves)
    svg = element(
        "svg",
        element("g", *grid, class_="grid"),
        *paths,
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        preserveAspectRatio="none",
        aria_hidden="true",
    )
    main = next((one for one in curves if not one.background), curves[0])  # as in page.js
    unit = "epoch" if per_epoch else "step"
    labels = [
        *(element("span", _short(y, axis, up), class_="up", style=f"top:{100 * top(y):.2f}%") for y in up),
        *(element("span", f"{x:g}", class_="across", style=f"left:{100 * left(x):.2f}%") for x in across),
    ]
    keys = (element("span", element("i", class_=f"key {one.style}"), one.name) for one in curves)
    legend = element("span", *keys, class_="legend") if len(curves) > 1 else ""
    values = {
        "range": [first, last, low, high],
        "axis": [axis.scale, axis.digits, axis.unit],
        "unit": unit,
        "curves": [
            {"name": one.name, "style": one.style, "x": one.x, "y": one.y, "steps": one.steps, "back": one.background}
            for one in curves
        ],
    }
    plot = element(
        "div",
        svg,
        *labels,
        element("script", script_json(values), type="application/json"),
        class_="plot",
        tabindex="0",
        role="slider",
        aria_label=f"{title} by {unit}: move with the arrow keys",
        aria_valuemin=0,
        aria_valuemax=len(main.x) - 1,
        aria_valuenow=0,
        aria_valuetext=_summary(curves, axis),
    )
    caption = element("figcaption", element("h3", title), legend)
    return element("figure", caption, plot, element("p", unit, class_="axis"), class_="chart")


def script_json(value: object) -> Html:
    """JSON for a script element, which must not contain "</"."""
    return Html(json.dumps(value, separators=(",", ":")).replace("<", "\\u003c"))


def _path(one: Curve, points: Sequence[tuple[float, float]]) -> Html:
    written = [f"{WIDTH * x:.1f},{HEIGHT * y:.1f}" for x, y in points]
    line = element("path", d=f"M{' '.join(written)}", class_=f"{one.style}{' back' if one.background else ''}")
    if one.background or len(points) > DOTTED:
        return line
    # A line of length 0 with round ends is a dot, which the stretched SVG does not distort.
    return join([line, element("path", d="".join(f"M{point}h0" for point in written), class_=f"{one.style} dots")])


def _range(curves: Sequence[Curve], axis: Axis) -> tuple[float, float]:
    values: list[float] = []
    for one in curves:
        ordered = sorted(one.y)
        out = int(OUTLIERS * len(ordered)) if one.background else 0
        values += [ordered[out], ordered[-1 - out]]
    low, high = _ends([0, *values] if axis.zero else values, 10**-axis.digits / axis.scale)
    room = 0.04 * (high - low)
    return (low if axis.zero and low == 0 else low - room), high + room


def _ends(values: Sequence[float], least: float = 0) -> tuple[float, float]:
    """The smallest and the largest value; a range around them if they differ by `least` or less: they read as equal."""
    low, high = min(values), max(values)
    room = max(abs(high), abs(low)) / 20 or 0.5
    return (low, high) if high - low > least else (low - room, high + room)


def ticks(low: float, high: float, most: int, least: float = 0) -> list[float]:
    """Round numbers that cover low to high, about `most`: multiples of 1, 2 or 5 times a power of 10.

    They are at least `least` apart.
    """
    rough = max((high - low) / most, least)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    return [number * step for number in range(math.floor(low / step), math.ceil(high / step) + 1)]


def _short(value: float, axis: Axis, all_ticks: Sequence[float]) -> str:
    """A tick with as few decimals as all of them need."""
    apart = (all_ticks[1] - all_ticks[0]) * axis.scale if len(all_ticks) > 1 else 1
    digits = max(0, -math.floor(math.log10(apart) + 1e-9))
    return f"{value * axis.scale:,.{digits}f}{axis.unit}"


def _summary(curves: Sequence[Curve], axis: Axis) -> str:
    return "; ".join(f"{one.name} from {axis.text(one.y[0])} to {axis.text(one.y[-1])}" for one in curves)
