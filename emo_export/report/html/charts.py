"""Geometry of the report's charts: figures to coordinates, which the template draws as inline SVG.

Not by matplotlib: the colours in its SVG are fixed, and the page follows the reader's light or dark
scheme with CSS variables. Widths are in units that are about a pixel on a phone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from emo_export.interfaces import Ids
from emo_export.report.html.chart_axes import Axis, Tick, linear_axis, log_axis, spread

WIDTH, HEIGHT = 360.0, 220.0
LEFT, RIGHT, TOP, BOTTOM = 44.0, 270.0, 14.0, 184.0
LABEL_GAP = 12.0
STYLES = 6  # colours with their dashes; report.css has one rule for each
BAR, GROUP = 14.0, 19.0  # heights of a bar and of the name above a group
BARS_LEFT, BARS_RIGHT = 96.0, 296.0
NO_CHOICE = "none"
LEVELS = (0.5, 1.0, 2.0, 4.0)  # times an even share, between the levels 1 to 5 of a heat map


@dataclass(frozen=True)
class Line:
    """One line: the points of its unbroken pieces, where it ends, where its name stands."""

    name: str
    style: int
    pieces: tuple[str, ...]
    end: tuple[float, float] | None
    label_at: float


@dataclass(frozen=True)
class LineChart:
    """Lines over positions from 1; a value that is not finite leaves a gap."""

    lines: tuple[Line, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    height: float = HEIGHT


@dataclass(frozen=True)
class Bar:
    """One bar: from the line of no change to `at`; None for a value that is not finite."""

    name: str
    style: int
    y: float
    x: float
    width: float | None
    value: float


@dataclass(frozen=True)
class Bars:
    """Bars in named groups, to both sides of `zero`."""

    groups: tuple[tuple[str, float, tuple[Bar, ...]], ...]
    zero: float
    ticks: tuple[Tick, ...]
    height: float


@dataclass(frozen=True)
class HeatMap:
    """Cells of a (rows, columns) table as one path for each level, in units of a cell.

    `absent` is the path of the cells without a routed expert, in units of the chart.
    """

    paths: Mapping[str, str]
    absent: str
    columns: int
    rows: int
    cell: tuple[float, float]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    height: float


@dataclass(frozen=True)
class Areas:
    """Two areas, one on top of the other, over time, and where a limit stands (None: outside)."""

    lower: str
    upper: str
    limit: float | None
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    labels: tuple[float, float]
    height: float = HEIGHT


def line_chart(
    values: Mapping[str, Sequence[float]], log: bool, order: Sequence[str]
) -> LineChart | None:
    """Lines of equal length by name; None when there is nothing that could be drawn.

    A name has the style of its place in `order`, so that it looks the same in every chart.
    """
    everything = [value for line in values.values() for value in line]
    y = log_axis(everything, BOTTOM, TOP) if log else linear_axis(everything, BOTTOM, TOP)
    if y is None:
        return None
    count = max(len(line) for line in values.values())
    x = Axis(1, max(count, 2), LEFT, RIGHT)
    ends = []
    for line in values.values():
        finite = [(x.place(i + 1), y.place(v)) for i, v in enumerate(line) if math.isfinite(v)]
        ends.append(finite[-1] if finite else None)
    labels = spread([end[1] if end else BOTTOM for end in ends], LABEL_GAP, TOP, BOTTOM)
    lines = tuple(
        Line(name, order.index(name) % STYLES, _pieces(line, x, y), end, label)
        for (name, line), end, label in zip(values.items(), ends, labels, strict=True)
    )
    return LineChart(lines, tuple(_whole(x)), tuple(y.ticks))


def _pieces(line: Sequence[float], x: Axis, y: Axis) -> tuple[str, ...]:
    points = [(i + 1, value) for i, value in enumerate(line)]
    return tuple(
        " ".join(f"{x.place(at):g},{y.place(value):g}" for at, value in piece)
        for finite, piece in groupby(points, key=lambda point: math.isfinite(point[1]))
        if finite
    )


def _whole(axis: Axis) -> list[Tick]:
    """The first position and the round ones."""
    ticks = [t for t in axis.ticks if "." not in t.label and t.label != "0"]
    return [Tick("1", axis.place(1)), *(t for t in ticks if t.at > axis.place(1) + 20)]


def bars(groups: Mapping[str, Mapping[str, float]], order: Sequence[str]) -> Bars | None:
    """Group -> name -> value around zero; None without a finite value. `order` as in line_chart."""
    values = [value for group in groups.values() for value in group.values()]
    if not any(map(math.isfinite, values)):
        return None
    axis = linear_axis(values, BARS_LEFT, BARS_RIGHT) or Axis(0, 1, BARS_LEFT, BARS_RIGHT)
    zero, y, made = axis.place(0), TOP, []
    for name, group in groups.items():
        inside = []
        for index, (label, value) in enumerate(group.items()):
            at = axis.place(value) if math.isfinite(value) else None
            x = zero if at is None else min(zero, at)
            width = None if at is None else round(abs(at - zero), 2)
            inside.append(
                Bar(label, order.index(label) % STYLES, y + GROUP + BAR * index, x, width, value)
            )
        made.append((name, y, tuple(inside)))
        y += GROUP + BAR * len(group) + 4
    return Bars(tuple(made), zero, tuple(axis.ticks), y + 22)


def heat_map(usage: Ids) -> HeatMap:
    """How often each expert was chosen: counts (layers, experts), -1 where there is none."""
    rows, columns = usage.shape
    cell = (round(min(14.0, (WIDTH - LEFT) / columns), 3), 16.0 if rows <= 8 else 11.0)
    paths: dict[str, list[str]] = {}
    absent = []
    for row, counts in enumerate(usage):
        column = 0
        for level, run in groupby(levels(counts)):
            length = len(list(run))
            if level == NO_CHOICE:  # its hatching must not be scaled
                x, y, wide = LEFT + column * cell[0], TOP + row * cell[1], length * cell[0]
                absent.append(f"M{x:.2f} {y:g}h{wide:.2f}v{cell[1]:g}h-{wide:.2f}z")
            else:
                paths.setdefault(level, []).append(f"M{column} {row}h{length}v1h-{length}z")
            column += length
    x_step, y_step = max(1, -(-columns // 8)), max(1, -(-rows // 16))
    return HeatMap(
        {level: "".join(paths[level]) for level in sorted(paths)},
        "".join(absent),
        columns,
        rows,
        cell,
        tuple(Tick(str(i), LEFT + (i + 0.5) * cell[0]) for i in range(0, columns, x_step)),
        tuple(Tick(str(i), TOP + (i + 0.5) * cell[1]) for i in range(0, rows, y_step)),
        TOP + rows * cell[1] + 34,
    )


def levels(counts: Ids) -> list[str]:
    """The level of each expert of a layer: NO_CHOICE, 0 (never chosen), 1 (least) to 5."""
    routed = counts[counts >= 0]
    even = routed.sum() / len(routed) if len(routed) else 1.0
    found = []
    for count in counts.tolist():
        share = count / even if even else 0.0
        busy = str(1 + sum(share >= bound for bound in LEVELS)) if count else "0"
        found.append(NO_CHOICE if count < 0 else busy)
    return found


def areas(samples: Sequence[tuple[float, float, float]], limit: float | None) -> Areas | None:
    """(seconds, lower, upper) samples stacked; `limit` is drawn when it is near enough to show."""
    if not samples:
        return None
    tops = [lower + upper for _, lower, upper in samples]
    shown = limit if limit is not None and limit <= 2 * max(tops) else None
    y = linear_axis([*tops, shown or 0.0], BOTTOM, TOP)
    last = max(time for time, _, _ in samples)
    x = linear_axis([last], LEFT, RIGHT)
    if y is None or x is None:
        return None
    x = Axis(0, last, LEFT, RIGHT)
    base = [(x.place(time), y.place(lower)) for time, lower, _ in samples]
    top = [(x.place(s[0]), y.place(both)) for s, both in zip(samples, tops, strict=True)]
    floor = [(base[-1][0], BOTTOM), (base[0][0], BOTTOM)]
    middles = ((base[-1][1] + BOTTOM) / 2, (base[-1][1] + top[-1][1]) / 2)
    return Areas(
        _points([*base, *floor]),
        _points([*top, *reversed(base)]),
        None if shown is None else y.place(shown),
        tuple(x.ticks),
        tuple(y.ticks),
        (lambda moved: (moved[0], moved[1]))(spread(middles, LABEL_GAP, TOP, BOTTOM)),
    )


def _points(places: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:g},{y:g}" for x, y in places)
