"""The page of `bench`."""

from __future__ import annotations

import pytest
from rich.table import Table
from rich.text import Text

from emo_export.report.html.bench_page import LEFT, RIGHT, bench_page, speed_chart


def test_bars_lie_where_the_speeds_say() -> None:
    chart = speed_chart("Decode", {"a": (5.0, 4.0, 8.0), "b": (10.0, 10.0, 10.0)})
    a, b = chart.bars
    half, width = LEFT + (RIGHT - LEFT) / 2, RIGHT - LEFT
    assert (a.end, a.least, a.most) == (half, LEFT + 0.4 * width, LEFT + 0.8 * width)
    assert b.end == RIGHT and b.y > a.y
    with pytest.raises(ValueError, match="no model has a speed"):
        speed_chart("Decode", {})


def test_the_page_has_what_the_terminal_shows_escaped() -> None:
    table = Table("target", "decode\ntok/s")
    table.add_row("<a>", "5.0")
    page = bench_page(
        [Text("cpu: <x>"), "", table, "", Text("warning: & busy")],
        {"Decode": {"<a>": (5.0, 4.0, 8.0)}},
    )
    assert "cpu: &lt;x&gt;" in page and "warning: &amp; busy" in page and "<a>" not in page
    assert page.count("<rect") == 1 and "<td>5.0</td>" in page
