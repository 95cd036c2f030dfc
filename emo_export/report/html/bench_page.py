"""`bench` as one HTML page: the speeds as bars, the table, what to beware of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import RenderableType
from rich.table import Table

from emo_export import __version__
from emo_export.base import disk
from emo_export.report.html.chart_axes import Tick, linear_axis
from emo_export.report.html.page import check_writable, environment

__all__ = ["bench_page", "check_writable", "speed_chart", "write_bench_page"]

WIDTH, LEFT, RIGHT, TOP = 360.0, 4.0, 290.0, 8.0
STEP = 34.0  # from one model to the next: its name, and its bar below
Spread = tuple[float, float, float]


@dataclass(frozen=True)
class SpeedBar:
    """One model: its bar from zero to `end`, the rounds from `least` to `most`, all coordinates."""

    name: str
    y: float
    end: float
    least: float
    most: float
    value: float


@dataclass(frozen=True)
class SpeedChart:
    """Bars of one kind of speed, in tokens per second."""

    title: str
    bars: tuple[SpeedBar, ...]
    ticks: tuple[Tick, ...]
    bottom: float


def speed_chart(title: str, speeds: Mapping[str, Spread]) -> SpeedChart:
    """Name -> (median, least, most) tokens per second, all above zero."""
    axis = linear_axis([most for _, _, most in speeds.values()], LEFT, RIGHT)
    if axis is None:
        raise ValueError("no model has a speed")
    bars = tuple(
        SpeedBar(
            name, TOP + STEP * i, axis.place(found), axis.place(least), axis.place(most), found
        )
        for i, (name, (found, least, most)) in enumerate(speeds.items())
    )
    return SpeedChart(title, bars, tuple(axis.ticks), TOP + STEP * len(bars))


def write_bench_page(
    path: Path, parts: Sequence[RenderableType], speeds: Mapping[str, Mapping[str, Spread]]
) -> None:
    """Write the page; it appears under its name only when whole.

    `parts`: lines and the table as the terminal shows them; `speeds`: title -> model -> median,
    least and most. Raises MissingDependencyError without jinja2, EmoExportError when it can't be
    written.
    """
    text = bench_page(parts, speeds)
    disk.write_whole(path, text.encode("utf-8", "replace"))


def bench_page(parts: Sequence[RenderableType], speeds: Mapping[str, Mapping[str, Spread]]) -> str:
    """The page as text."""
    at = next(i for i, part in enumerate(parts) if isinstance(part, Table))
    table = parts[at]
    assert isinstance(table, Table)
    columns = list(table.columns)
    return (
        environment()
        .get_template("bench.html.j2")
        .render(
            version=__version__,
            charts_drawn=[speed_chart(title, values) for title, values in speeds.items()],
            width=WIDTH,
            facts=[line for line in map(str, parts[:at]) if line],
            headings=[str(column.header) for column in columns],
            rows=list(zip(*(list(map(str, column.cells)) for column in columns), strict=True)),
            after=[line for line in map(str, parts[at + 1 :]) if line],
        )
    )
