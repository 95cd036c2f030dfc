"""`inspect --plot`: which experts text uses."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from emo_export.report.html.usage_page import Usage, usage_page
from tests.kit.command import Emo
from tests.kit.packages import quantised_package
from tests.kit.paths import GOLDEN

BASE = GOLDEN / "base"


def shares(page: Path) -> list[list[float]]:
    """The rows of figures of a page: a layer of a kind of text each, in %."""
    rows = re.findall(r'<tr><th scope="row">\d+</th>(.*?)</tr>', page.read_text("utf-8"))
    return [[float(x) for x in re.findall(r"<td>([\d.e+-]+)</td>", row)] for row in rows]


def test_a_page_escapes_and_draws_each_kind() -> None:
    counts = np.array([[4, 0, -1], [1, 3, -1]])
    page = usage_page("<b>", [Usage("a&b", 4, counts), Usage("c", 4, counts)])
    assert page.count("<figure>") == 2 and "a&amp;b" in page and "<b>" not in page
    assert "<td>100</td><td>0</td><td>–</td>" in page


@pytest.mark.slow
def test_a_package_draws_what_it_recorded(emo: Emo, tmp_path: Path) -> None:
    package, page = quantised_package(), tmp_path / "usage.html"
    done = emo("inspect", package, "--plot", page, "--json")
    assert done.code == 0 and done.err == f"wrote {page}\n" and json.loads(done.out)
    golden = np.load(package / "golden.npz")
    tokens = (golden["heldout_ids"] != -1).sum()
    for found, counts in zip(shares(page), golden["usage"].reshape(-1, 8), strict=True):
        assert np.allclose(found, 100 * counts[counts >= 0] / tokens, rtol=0.01)


@pytest.mark.slow
def test_a_checkpoint_draws_what_a_text_uses(emo: Emo, tmp_path: Path) -> None:
    for name, text in (("code", "x = [y for y in z]\n"), ("prose", "A dog slept on the quay. ")):
        (tmp_path / f"{name}.txt").write_text(text * 30, "utf-8")
    page = tmp_path / "usage.html"
    texts = [word for name in ("code", "prose") for word in ("--calibration", f"{name}.txt")]
    texts = [str(tmp_path / word) if word.endswith("txt") else word for word in texts]
    done = emo("inspect", BASE, "--plot", page, *texts, "--calibration-tokens", 64)
    assert done.code == 0, done.err
    config = json.loads((BASE / "config.json").read_text("utf-8"))
    rows = shares(page)
    assert len(rows) == 2 * config["num_hidden_layers"]
    text = page.read_text("utf-8")
    assert "<h3>code</h3>" in text and "<h3>prose</h3>" in text
    sums = {round(sum(row)) for row in rows}
    assert len(sums) == 1  # so many experts of each token, in every layer
    assert sums.pop() % 100 == 0


def test_what_is_not_known_is_refused(emo: Emo, tmp_path: Path) -> None:
    page = tmp_path / "x.html"
    for arguments, says in {
        (BASE, "--plot", page): "records no expert usage; give a text: --calibration FILE",
        (BASE, "--calibration", tmp_path): "add --plot FILE",
        (tmp_path, "--plot", page): "give the folder that export made",
        (tmp_path, "--plot", page, "--calibration", tmp_path): "is for a checkpoint",
    }.items():
        done = emo("inspect", *arguments)
        assert done.code == 2 and says in done.err and done.out == "", done
    assert not page.exists()
