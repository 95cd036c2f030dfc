"""Scales of the report's charts: which range an axis shows, and where its ticks are."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
MOST_TICKS = 5


@dataclass(frozen=True)
class Tick:
    """A label and its place on the axis."""

    label: str
    at: float


@dataclass(frozen=True)
class Axis:
    """From values to coordinates: `low` of the (log10) values is drawn at `start`, `high` at `end`.

    On a logarithmic axis zero has no place; it is drawn at `start`.
    """

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def place(self, value: float) -> float:
        """The coordinate of a finite value."""
        scaled = value
        if self.log:
            scaled = math.log10(value) if value > 0 else self.low
        share = (scaled - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 2)

    @property
    def ticks(self) -> list[Tick]:
        """At most MOST_TICKS round values."""
        if self.log:
            low, high = round(self.low), round(self.high)
            powers = range(low, high + 1, math.ceil((high - low) / (MOST_TICKS - 1)))
            return [Tick(f"10{str(p).translate(SUPERSCRIPT)}", self.place(10.0**p)) for p in powers]
        step = round_step(self.high - self.low)
        first = math.ceil(self.low / step - 1e-9)
        counts = range(first, math.floor(self.high / step + 1e-9) + 1)
        return [Tick(f"{count * step:.6g}", self.place(count * step)) for count in counts]


def round_step(span: float) -> float:
    """A step of 1, 2 or 5 times a power of ten that makes at most MOST_TICKS ticks."""
    rough = span / (MOST_TICKS - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    return next(power * m for m in (1, 2, 5, 10) if power * m >= rough * (1 - 1e-9))


def log_axis(values: Iterable[float], start: float, end: float) -> Axis | None:
    """Whole decades around all positive values; None when there are none."""
    positive = [value for value in values if math.isfinite(value) and value > 0]
    if not positive:
        return None
    low, high = math.floor(math.log10(min(positive))), math.ceil(math.log10(max(positive)))
    return Axis(low, max(high, low + 1), start, end, log=True)


def linear_axis(values: Sequence[float], start: float, end: float) -> Axis | None:
    """Zero and all finite values, to the next round step; None when there is nothing but zero."""
    finite = [value for value in values if math.isfinite(value)]
    low, high = min([0.0, *finite]), max([0.0, *finite])
    if low == high:
        return None
    step = round_step(high - low)
    return Axis(
        math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step, start, end
    )


def spread(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Move labels apart: at least `gap` between two, near their places, within low and high."""
    order = sorted(range(len(places)), key=lambda i: places[i])
    moved = [0.0] * len(places)
    last = -math.inf
    for i in order:
        moved[i] = last = max(places[i], last + gap, low)
    last = max(high, low + gap * (len(places) - 1)) + gap
    for i in reversed(order):
        moved[i] = last = min(moved[i], last - gap)
    return [round(place, 2) for place in moved]
