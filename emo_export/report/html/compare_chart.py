"""Geometry of `compare`'s picture: KL against bytes read and against speed, a panel each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from emo_export.report.compare import Compared
from emo_export.report.html.chart_axes import Axis, Tick, linear_axis, log_axis, spread
from emo_export.report.html.charts import BOTTOM, LABEL_GAP, LEFT, STYLES

PANEL_TOP = 42.0  # below the panel's title and the unit of its axis
RIGHT, PANEL_WIDTH = 240.0, 366.0
BELOW = 52.0  # ticks, the axis's name, and a gap
WIDE = 10.0  # between the least and the most KL, beyond which the scale is logarithmic


@dataclass(frozen=True)
class Mark:
    """One target: where it is, its KL's interval from `low` to `high`, where its name stands.

    `style` is its package's, in colour and in shape. `spread` are the least and most speed.
    """

    name: str
    style: int
    x: float
    y: float
    low: float | None
    high: float | None
    spread: tuple[float, float] | None
    label_at: float


@dataclass(frozen=True)
class Panel:
    """KL (up) against one other figure (to the right)."""

    title: str
    unit: str
    marks: tuple[Mark, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    bottom: float

    @property
    def height(self) -> float:
        """Of the whole panel."""
        return self.bottom + BELOW


def panels(rows: Sequence[Compared], positions: float) -> tuple[Panel, ...]:
    """Against bytes, and against speed where any was measured; without KL there is nothing."""
    packages = list(dict.fromkeys(row.package for row in rows))
    drawn = [row for row in rows if row.kl is not None and math.isfinite(row.kl)]
    by_bytes = [(row, (row.read / 1e6,) * 3) for row in drawn]
    by_speed = [
        (row, (row.speed.median, row.speed.least, row.speed.most)) for row in drawn if row.speed
    ]
    title = f"KL against bytes read, {positions:g} positions in the KV cache"
    return (
        *_panel(title, "MB read per decoded token", by_bytes, packages),
        *_panel("KL against measured speed", "decoded tokens per second", by_speed, packages),
    )


def _panel(
    title: str,
    unit: str,
    rows: Sequence[tuple[Compared, tuple[float, float, float]]],
    packages: Sequence[str],
) -> tuple[Panel, ...]:
    if not rows:
        return ()
    bottom = max(BOTTOM + 20, PANEL_TOP + LABEL_GAP * len(rows))  # room for a name a line
    ends = [row.kl or 0.0 for row, _ in rows]
    ends += [
        end for row, _ in rows if row.interval for end in (row.interval.low, row.interval.high)
    ]
    y = _kl_axis(ends, bottom)
    x = linear_axis([most for _, (_, _, most) in rows], LEFT + 6, RIGHT)
    if x is None:
        raise ValueError("a target that reads nothing, or takes for ever")
    places = [(x.place(value), y.place(row.kl or 0.0)) for row, (value, _, _) in rows]
    labels = spread([at for _, at in places], LABEL_GAP, PANEL_TOP, bottom)
    marks = tuple(
        Mark(
            row.target,
            packages.index(row.package) % STYLES,
            *place,
            y.place(row.interval.low) if row.interval else None,
            y.place(row.interval.high) if row.interval else None,
            (x.place(least), x.place(most)) if least < most else None,
            label,
        )
        for (row, (_, least, most)), place, label in zip(rows, places, labels, strict=True)
    )
    return (Panel(title, unit, marks, tuple(x.ticks), tuple(y.ticks), bottom),)


def _kl_axis(values: Sequence[float], bottom: float) -> Axis:
    positive = [value for value in values if value > 0]
    if positive and max(positive) > WIDE * min(positive):
        found = log_axis(positive, bottom, PANEL_TOP)
    else:
        found = linear_axis(values, bottom, PANEL_TOP)
    return found or Axis(0, 1, bottom, PANEL_TOP)
