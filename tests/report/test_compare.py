"""The picture of `compare`: marks lie where figures say, names do not overlap, text is escaped."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import replace
from itertools import pairwise

from emo_export.parity.estimates import Interval
from emo_export.report.compare import Compared, Speed, as_json, notes
from emo_export.report.html.chart_axes import linear_axis
from emo_export.report.html.charts import LABEL_GAP, LEFT
from emo_export.report.html.compare_chart import PANEL_TOP, RIGHT, panels
from emo_export.report.html.compare_page import comparison

ROW = Compared(
    "nano",
    "gguf:q8_0",
    0.004,
    Interval(0.002, 0.006, 100, "tokens"),
    1.01,
    "a",
    False,
    9,
    4e6,
    None,
)


def test_marks_lie_where_the_figures_say() -> None:
    other = replace(ROW, package="b", kl=0.01, interval=None, read=2e6, speed=Speed(8.0, 5.0, 10.0))
    by_bytes, by_speed = panels([ROW, other], 64.5)
    first, second = by_bytes.marks
    bottom, height = by_bytes.bottom, by_bytes.bottom - PANEL_TOP
    assert (first.x, second.x) == (RIGHT, LEFT + 6 + (RIGHT - LEFT - 6) / 2)  # 4 and 2 of 4 MB
    assert first.low is not None and first.high is not None  # of 0.01
    for at, kl in ((first.y, 0.4), (first.low, 0.2), (first.high, 0.6), (second.y, 1.0)):
        assert abs(at - (bottom - kl * height)) < 0.02
    assert (first.style, second.style) == (0, 1) and second.low is None and first.spread is None
    (mark,) = by_speed.marks
    axis = linear_axis([10.0], LEFT + 6, RIGHT)
    assert axis is not None and mark.spread == (axis.place(5), axis.place(10))
    assert "64.5 positions" in by_bytes.title


def test_many_names_do_not_overlap() -> None:
    (panel,) = panels([replace(ROW, target=f"onnx:{i}") for i in range(40)], 1)
    places = sorted(mark.label_at for mark in panel.marks)
    assert all(b - a >= LABEL_GAP - 0.01 for a, b in pairwise(places))
    assert places[0] >= PANEL_TOP and places[-1] <= panel.bottom


def test_a_wide_range_is_logarithmic_and_an_end_below_zero_is_at_the_bottom() -> None:
    far = replace(ROW, kl=0.5, interval=Interval(-0.1, 1.1, 5, "tokens"))
    (panel,) = panels([ROW, far], 1)
    assert "10⁻²" in [tick.label for tick in panel.y_ticks]
    assert panel.marks[1].low == panel.bottom


def test_what_is_not_known_is_told_and_not_drawn() -> None:
    unknown = replace(ROW, target="gguf:q4_0", kl=None, interval=None, ratio=None)
    assert panels([unknown], 1) == ()
    assert "nothing can be drawn" in comparison(".html", [unknown], 1)
    (told,) = notes([ROW, unknown])
    assert told == "without KL, and not drawn: nano gguf:q4_0 (emo-export validate)"
    pruned = replace(ROW, package="few", pruned=True, heldout="b")
    about_pruning, about_text = notes([ROW, pruned])
    assert "does not have what pruning costs" in about_pruning and about_text.endswith("a; b")
    assert as_json([unknown], 64.5)["targets"][0]["kl"] is None


def test_page_and_picture_escape_names() -> None:
    rows = [replace(ROW, package="<b>&", target="gguf:<i>")]
    for suffix in (".html", ".svg"):
        text = comparison(suffix, rows, 1)
        assert "<b>&" not in text and "<i>" not in text and "&lt;b&gt;&amp;" in text
        assert "http" not in text.replace("http://www.w3.org/2000/svg", "").replace(
            "http-equiv", ""
        )
    picture = ET.fromstring(comparison(".svg", rows, 1).strip())
    assert picture.tag == "{http://www.w3.org/2000/svg}svg"
