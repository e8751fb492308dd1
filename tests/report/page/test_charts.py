"""dptrain.report.page.charts: axes, curves, and what the page gets of them."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from html_pages import Element, read_page

from dptrain.report.page.charts import (
    HEIGHT,
    MOST_POINTS,
    WIDTH,
    Axis,
    Curve,
    chart,
    curve,
    fitting_axis,
    script_json,
    ticks,
)
from dptrain.report.page.markup import Html


def parsed(html: Html, tmp_path: Path) -> Element:
    (tmp_path / "chart.html").write_text(html, encoding="utf-8")
    return read_page(tmp_path / "chart.html")


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (0.4891, 1.5823), (-3e-9, 4e-9), (0, 1.7e6), (71.99, 72.01), (5, 164)]
)
def test_ticks_are_few_round_numbers_that_cover_the_range(low: float, high: float) -> None:
    found = ticks(low, high, 5)
    apart = found[1] - found[0]
    assert found[0] <= low + 1e-9 * apart
    assert found[-1] >= high - 1e-9 * apart
    assert 3 <= len(found) <= 9
    assert round(apart / 10 ** math.floor(math.log10(apart) + 1e-9), 6) in (1, 2, 5)


def test_many_points_become_means_and_the_name_says_so() -> None:
    lines = [{"step": step, "loss": float(step)} for step in range(1, 1999)]
    found = curve("single batches", "c1", lines, "loss", 100, background=True)
    assert found.name == "single batches, mean of 4"
    assert len(found.y) == MOST_POINTS
    assert found.y[0] == (1 + 2 + 3 + 4) / 4
    assert found.y[-1] == (1997 + 1998) / 2
    assert found.steps[0] == 3
    assert found.x[0] == 0.03
    assert len(curve("epochs", "c1", lines, "loss", 100).y) == 1998


def test_points_lie_where_their_values_say(tmp_path: Path) -> None:
    values = Curve("test", "c1", [1, 2, 4], [0.2, 0.6, 0.4], [7, 14, 28])
    page = parsed(chart("Accuracy", [values], Axis(1, scale=100, unit=" %"), per_epoch=7), tmp_path)
    path = next(one for one in page.all("path", class_="c1") if "dots" not in one.attributes["class"])
    points = [tuple(map(float, point.split(","))) for point in path.attributes["d"][1:].split()]
    assert [x for x, _ in points] == [WIDTH / 4, WIDTH / 2, WIDTH]
    tops = {one.text: float(one.attributes["style"][4:-1]) for one in page.all("span", class_="up")}
    assert set(tops) == {"20 %", "30 %", "40 %", "50 %", "60 %"}
    assert tops["60 %"] < tops["20 %"]
    for (_, y), label in zip(points, ("20 %", "60 %", "40 %"), strict=True):
        assert 100 * y / HEIGHT == pytest.approx(tops[label], abs=0.03)
    assert [one.text for one in page.all("span", class_="across")] == ["0", "1", "2", "3", "4"]
    assert page.one("div", role="slider").attributes["aria-valuetext"] == "test from 20.0 % to 40.0 %"


def test_the_arrow_keys_reach_each_point_of_the_main_curve(tmp_path: Path) -> None:
    back = Curve("batches", "c1", list(range(100)), [1.0] * 100, list(range(100)), background=True)
    curves = [back, Curve("epochs", "c1", [50, 100], [2.0, 3.0], [50, 100])]
    page = parsed(chart("Loss", curves, Axis(1), per_epoch=0), tmp_path)
    assert page.one("div", role="slider").attributes["aria-valuemax"] == "1"


def test_one_outlier_in_the_background_does_not_hide_the_curve(tmp_path: Path) -> None:
    back = Curve("batches", "c1", list(range(100)), [1e9, *[1.0] * 99], list(range(100)), background=True)
    page = parsed(chart("Loss", [back, Curve("test", "c2", [1, 99], [2, 1], [1, 99])], Axis(1), per_epoch=1), tmp_path)
    assert max(float(one.text) for one in page.all("span", class_="up")) <= 2


@pytest.mark.parametrize("values", [[0.0], [0.0, 0.0], [1e300, -1e300], [5e-324, 1e-320], [1e9, 1e9 + 1e-6]])
def test_extreme_values_give_a_chart(values: list[float], tmp_path: Path) -> None:
    number = len(values)
    html = chart("Loss", [Curve("a", "c1", list(range(number)), values, list(range(number)))], Axis(4), per_epoch=1)
    for path in parsed(html, tmp_path).all("path"):
        assert "nan" not in path.attributes["d"]
        assert "inf" not in path.attributes["d"]


def ticks_up(values: list[float], axis: Axis, tmp_path: Path) -> set[str]:
    page = parsed(chart("Figure", [Curve("c", "c1", [1, 2], values, [1, 2])], axis, per_epoch=1), tmp_path)
    return {one.text for one in page.all("span", class_="up")}


def test_a_constant_value_has_short_labels(tmp_path: Path) -> None:
    assert ticks_up([1.0, 1.0], Axis(2, scale=100, unit=" %"), tmp_path) == {"95 %", "100 %", "105 %"}
    assert ticks_up([2.3, 2.30004], Axis(4), tmp_path) == {"2.20", "2.25", "2.30", "2.35", "2.40"}
    assert ticks_up([0.0, 0.0], Axis(0), tmp_path) == {"-0.5", "0.0", "0.5"}
    nearly = ticks_up([0.999, 0.9995], Axis(2, scale=100, unit=" %"), tmp_path)
    assert nearly == {f"99.{digits} %" for digits in (90, 92, 94)}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0.000"),
        (0.8125, "0.8125"),
        (-37.25, "-37.25"),
        (123_456, "123,456"),
        (2.0834e-5, "2.083e-5"),
        (3e8, "3.000e8"),
        (1e-310, "0.010e-308"),
    ],
)
def test_an_axis_for_any_values_gives_them_four_digits(value: float, text: str) -> None:
    assert fitting_axis([value, value / 2]).text(value) == text


def test_labels_of_tiny_values_are_short(tmp_path: Path) -> None:
    assert ticks_up([1e-7, 3e-7], fitting_axis([1e-7, 3e-7]), tmp_path) == {
        f"{tick}e-7" for tick in ("1.0", "1.5", "2.0", "2.5", "3.0")
    }


def test_no_values_give_no_chart() -> None:
    assert chart("Loss", [curve("a", "c1", [{"step": 1}], "loss", 7)], Axis(4), per_epoch=7) == ""


def test_json_in_a_script_cannot_end_it() -> None:
    assert "<" not in script_json({"name": "</script><script>alert(1)"})
