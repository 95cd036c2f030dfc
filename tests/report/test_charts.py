"""Geometry of the report's charts against coordinates by hand."""

from __future__ import annotations

import itertools
import math
import re

import numpy as np
import pytest

from emo_export.report.html.chart_axes import Axis, linear_axis, log_axis, round_step, spread
from emo_export.report.html.charts import (
    BOTTOM,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    areas,
    bars,
    heat_map,
    levels,
    line_chart,
)

NAN = math.nan


def points(text: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in (pair.split(",") for pair in text.split())]


def test_axes() -> None:
    axis = log_axis([3e-4, 0.0, NAN, 2e-2], 100, 0)
    assert axis is not None and (axis.low, axis.high) == (-4, -1)
    assert axis.place(1e-4) == 100 and axis.place(1e-1) == 0 and axis.place(0) == 100
    assert axis.place(10**-2.5) == 50
    assert [tick.label for tick in axis.ticks] == ["10⁻⁴", "10⁻³", "10⁻²", "10⁻¹"]
    assert log_axis([0.0, NAN], 0, 1) is None and linear_axis([NAN, 0.0], 0, 1) is None
    wide = log_axis([1e-13, 1.0], 0, 1)
    assert wide is not None and len(wide.ticks) <= 5
    line = linear_axis([-0.0018, 0.0086], 0, 100)
    assert line is not None and line.low <= -0.0018 and line.high >= 0.0086
    assert [tick.label for tick in line.ticks] == ["-0.005", "0", "0.005", "0.01"]
    assert line.place(0) == pytest.approx(100 / 3, abs=0.01)
    assert round_step(4) == 1 and round_step(9) == 5 and round_step(0.05) == pytest.approx(0.02)


def test_labels_are_moved_apart() -> None:
    assert spread([10, 50, 90], 12, 0, 100) == [10, 50, 90]
    for places in ([50, 50, 50], [100, 100, 99], [0, 0, 0], [50] * 20):
        moved = sorted(spread(places, 12, 0, 100))
        assert all(b - a >= 12 for a, b in itertools.pairwise(moved))
        assert moved[0] >= 0 and (moved[-1] <= 100 or len(places) > 9)
    assert spread([60, 50], 12, 0, 100) == [62, 50]  # in the order of their lines


def test_lines() -> None:
    chart = line_chart({"b": [1.0, 0.1, NAN, 0.01], "c": [NAN] * 4}, True, ["a", "b", "c"])
    assert chart is not None
    b, c = chart.lines
    assert (b.style, c.style) == (1, 2) and c.pieces == () and c.end is None
    x = [LEFT + i * (RIGHT - LEFT) / 3 for i in range(4)]
    first, second = map(points, b.pieces)
    np.testing.assert_allclose(first, [(x[0], TOP), (x[1], (TOP + BOTTOM) / 2)], atol=0.01)
    np.testing.assert_allclose(second, [(x[3], BOTTOM)], atol=0.01)
    assert b.end == second[0]
    assert chart.x_ticks[0].label == "1"
    assert line_chart({"a": [0.0, 0.0]}, True, ["a"]) is None
    single = line_chart({"a": [2.0]}, False, ["a"])
    assert single is not None and single.lines[0].end == (LEFT, TOP)


def test_bars_start_at_no_change() -> None:
    chart = bars({"c": {"x": 0.01, "y": -0.005}, "d": {"x": NAN, "y": 0.0}}, ["x", "y"])
    assert chart is not None
    (_, _, (up, down)), (_, _, (none, zero)) = chart.groups
    axis = Axis(-0.005, 0.01, 96, 296)
    assert chart.zero == axis.place(0) == up.x and up.width == pytest.approx(296 - chart.zero)
    assert down.x == 96 and down.width == pytest.approx(chart.zero - 96)
    assert none.width is None and zero.width == 0 and (up.style, down.style) == (0, 1)
    ys = [bar.y for _, _, group in chart.groups for bar in group]
    assert ys == sorted(ys) and ys[-1] < chart.height
    assert bars({"c": {"x": NAN}}, ["x"]) is None


def test_levels_of_a_layer() -> None:
    # even share 10: under half, half, once, twice, four times; none to choose; never
    counts = np.array([4, 5, 10, 20, 40, -1, 0, 1, 0, 0, 20, 20, 0])
    assert sum(c for c in counts if c > 0) == 120 and (counts >= 0).sum() == 12
    assert levels(counts) == ["1", "2", "3", "4", "5", "none", "0", "1", "0", "0", "4", "4", "0"]
    assert levels(np.array([-1, -1])) == ["none", "none"] and levels(np.array([0, 0])) == ["0", "0"]


@pytest.mark.parametrize("shape", [(3, 32), (16, 128), (1, 1)])
def test_a_heat_map_has_every_cell_once(shape: tuple[int, int]) -> None:
    usage = np.random.default_rng(1).poisson(3, shape) * 5
    usage[:, -1] = -1
    chart = heat_map(usage)
    found = np.full(shape, "none")
    for level, path in chart.paths.items():
        for x, y, length in re.findall(r"M(\d+) (\d+)h(\d+)v1h-\d+z", path):
            cells = found[int(y), int(x) : int(x) + int(length)]
            assert (cells == "none").all()
            cells[:] = level
    assert found.tolist() == [levels(row) for row in usage]
    assert chart.absent.count("M") == shape[0] and LEFT + shape[1] * chart.cell[0] <= WIDTH + 0.5


def test_areas_are_stacked() -> None:
    chart = areas([(0, 10, 5), (2, 30, 10)], 45)
    assert chart is not None and chart.limit is not None
    lower, upper = points(chart.lower), points(chart.upper)
    assert lower[2:] == [(RIGHT, BOTTOM), (LEFT, BOTTOM)]
    assert upper[2:] == lower[1::-1]
    height = BOTTOM - lower[0][1]
    assert BOTTOM - lower[1][1] == pytest.approx(3 * height, abs=0.05)
    assert BOTTOM - upper[1][1] == pytest.approx(4 * height, abs=0.05)
    assert BOTTOM - chart.limit == pytest.approx(4.5 * height, abs=0.05)
    far = areas([(0, 10, 5), (2, 30, 10)], 4500)
    assert far is not None and far.limit is None
    assert areas([], None) is None and areas([(0, 0, 0)], 5) is None
