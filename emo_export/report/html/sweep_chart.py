"""Geometry of a sweep's picture: quality against bytes, a panel for each target, all to scale."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from emo_export.parity.outcome import Outcome
from emo_export.report.html.chart_axes import Axis, Tick, linear_axis, log_axis, spread
from emo_export.report.html.charts import BOTTOM, HEIGHT, LABEL_GAP, LEFT, RIGHT, STYLES, TOP

WIDE = 5.0  # between the least and the most, beyond which the scale is logarithmic
Point = tuple[float, float]


@dataclass(frozen=True)
class Curve:
    """One domain and method: its points from few bytes to many, and where its name stands."""

    name: str
    style: int
    points: tuple[Point, ...]
    label_at: float

    @property
    def line(self) -> str:
        """The points as SVG has them."""
        return " ".join(f"{x:g},{y:g}" for x, y in self.points)


@dataclass(frozen=True)
class Panel:
    """The curves of one target."""

    target: str
    curves: tuple[Curve, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    bottom: float
    height: float


def panels(outcomes: Sequence[Outcome]) -> tuple[Panel, ...]:
    """A panel for each target of which there are figures."""
    series = _series(outcomes)
    points = [point for lines in series.values() for line in lines.values() for point in line]
    if not points:
        return ()
    names = list(dict.fromkeys(name for lines in series.values() for name in lines))
    bottom = max(BOTTOM, TOP + LABEL_GAP * len(names))  # room for a name a line
    x = linear_axis([size for size, _ in points], LEFT, RIGHT)
    y = _ratios([ratio for _, ratio in points], bottom)
    if x is None or y is None:
        raise ValueError("a variant of no bytes or of no perplexity")
    made = []
    for target, lines in series.items():
        placed = {
            name: tuple((x.place(size), y.place(ratio)) for size, ratio in line)
            for name, line in lines.items()
        }
        labels = spread([line[-1][1] for line in placed.values()], LABEL_GAP, TOP, bottom)
        curves = tuple(
            Curve(name, names.index(name) % STYLES, line, label)
            for (name, line), label in zip(placed.items(), labels, strict=True)
        )
        height = HEIGHT - BOTTOM + bottom
        made.append(Panel(target, curves, tuple(x.ticks), tuple(y.ticks), bottom, height))
    return tuple(made)


def _series(outcomes: Sequence[Outcome]) -> Mapping[str, Mapping[str, list[Point]]]:
    """Target -> domain and method -> (MB, perplexity times the full model's), ascending.

    The variant of all experts belongs to every method.
    """
    found: dict[str, dict[str, list[Point]]] = {}
    methods = list(dict.fromkeys(one.label.method for one in outcomes if one.label.method))
    for outcome in outcomes:
        label, own = outcome.label, outcome.own
        if own is None or outcome.bytes is None or not math.isfinite(own.ratio):
            continue
        for method in [label.method] if label.method else methods or [""]:
            name = f"{label.domain} {method}" if len(methods) > 1 else label.domain
            points = found.setdefault(label.target, {}).setdefault(name, [])
            points.append((outcome.bytes / 1e6, own.ratio))
    return {
        target: {name: sorted(points) for name, points in lines.items()}
        for target, lines in found.items()
    }


def _ratios(values: Sequence[float], bottom: float) -> Axis | None:
    """From the least to the most, with a margin: zero says nothing of a ratio."""
    low, high = min(values), max(values)
    if high > WIDE * low:
        return log_axis(values, bottom, TOP)
    margin = max(0.05 * (high - low), 0.005 * high)
    return Axis(low - margin, high + margin, bottom, TOP)
