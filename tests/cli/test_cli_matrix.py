"""`domains`: rows are what `prune` alone chooses and measures; the page shows the same."""

from __future__ import annotations

import json
import math
from html.parser import HTMLParser
from pathlib import Path

import pytest

from emo_export.report.domains import LEVELS, level
from tests.kit.command import Emo
from tests.kit.paths import GOLDEN

TEXTS = {
    "code": "def mean(values):\n    return sum(values) / len(values)\n" * 10,
    "prose": "The harbour was quiet, and three boats lay at the pier beside the nets. " * 8,
}


class Cells(HTMLParser):
    """The text of every cell."""

    def __init__(self) -> None:
        super().__init__()
        self.cells: list[str] = []
        self._inside = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._inside = tag in ("td", "th") or (self._inside and tag in ("br", "small"))
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = self._inside and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.cells[-1] += data


@pytest.fixture
def kinds(tmp_path: Path) -> Path:
    folder = tmp_path / "kinds"
    folder.mkdir()
    for name, text in TEXTS.items():
        (folder / f"{name}.txt").write_text(text, "utf-8")
    return folder


@pytest.mark.slow
def test_every_row_is_what_prune_measures(tmp_path: Path, kinds: Path, emo: Emo) -> None:
    page = tmp_path / "page.html"
    shared = ("--keep", 5, "--heldout", kinds)
    methods = ("--method", "router", "--method", "reap")
    args = (*shared, *methods, "--calibration", kinds, "--json", "--html", page)
    done = emo("domains", GOLDEN / "base", *args)
    assert done.code == 0, done.err
    rows = json.loads(done.out)["rows"]
    assert [(r["chosen_on"], r["method"]) for r in rows] == [
        (name, method) for method in ("router", "reap") for name in (*TEXTS, "all")
    ]
    for row in rows:
        place = kinds if row["chosen_on"] == "all" else kinds / f"{row['chosen_on']}.txt"
        if row["chosen_on"] == "prose":
            continue
        out = tmp_path / f"{row['chosen_on']}-{row['method']}"
        choosing = ("--calibration", place, "--method", row["method"])
        pruned = emo("prune", GOLDEN / "base", "-o", out, *shared, *choosing, "--json")
        assert pruned.code == 0, pruned.err
        told = json.loads(pruned.out)
        assert told["pruning"]["experts_kept_per_layer"] == row["kept"]
        assert told["loss"] == row["loss"]
    cells = Cells()
    cells.feed(page.read_text("utf-8"))
    for row in rows:
        for loss in row["loss"]:
            assert any(cell.startswith(f"{loss['after']:.1f}") for cell in cells.cells)
    plain = emo("domains", GOLDEN / "base", *shared, "--calibration", kinds / "code.txt")
    assert plain.code == 0 and "all experts" in plain.out and "code" in plain.out


def test_levels_rise_with_the_cost() -> None:
    found = [level(ratio) for ratio in (0.9, *LEVELS, 100.0, math.inf)]
    assert found == [0, 1, 2, 3, 4, 5, 5, 5] and level(math.nan) == 5
