"""What pruning and what bits cost: against figures computed apart, and in every report."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from emo_export.errors import NotEnoughTextError
from emo_export.parity.estimates import LEAST_SEQUENCES
from emo_export.parity.losses import ALL, by_domain
from tests.kit.command import Emo
from tests.kit.paths import GOLDEN

rng = np.random.default_rng(3)


def test_ratios_are_of_the_means_and_errors_of_the_differences() -> None:
    rows = 2 * LEAST_SEQUENCES
    before = rng.gamma(2.0, 1.0, (rows, 40)).astype(np.float32)
    before[:, 0] = np.nan
    before[3, 20:] = np.nan
    shift = rng.normal(0.1, 0.05, (rows, 1)).astype(np.float32)
    after = before + shift
    found = {one.domain: one for one in by_domain(before, after, ["a", "b"] * LEAST_SEQUENCES)}
    assert list(found) == ["a", "b", ALL]
    for name, pick in (("a", slice(0, None, 2)), ("b", slice(1, None, 2)), (ALL, slice(None))):
        one = found[name]
        differences = (after - before)[pick].astype(np.float64)
        scored = ~np.isnan(differences)
        assert one.tokens == scored.sum()
        assert one.ratio == pytest.approx(math.exp(differences[scored].mean()), rel=1e-5)
        assert one.ratio == pytest.approx(one.after / one.before)
        # The sequences are what is independent here: each has one shift.
        counts = scored.sum(axis=1)
        mean = differences[scored].mean()
        sums = np.nansum(differences, axis=1) - counts * mean
        want = math.sqrt(len(sums) / (len(sums) - 1) * (sums**2).sum()) / counts.sum()
        assert one.stderr == pytest.approx(want, rel=1e-4)


def test_one_token_has_no_error() -> None:
    (one,) = by_domain(np.array([[np.nan, 1.0]], np.float32), np.ones((1, 2), np.float32), [])
    assert one.domain == ALL and one.ratio == 1 and one.stderr is None


@pytest.mark.slow
def test_three_figures_are_told_apart_everywhere(tmp_path: Path, emo: Emo) -> None:
    text = tmp_path / "text.txt"
    text.write_text("def mean(values):\n    return sum(values)\n" * 12, "utf-8")
    args = ("--keep", 6, "--calibration", text, "--to", "gguf:q8_0")
    done = emo("export", GOLDEN / "base", "-o", tmp_path / "out", *args)
    assert done.code in (0, NotEnoughTextError.exit_code), done.err
    assert "pruning" in done.out and "both" in done.out
    told = json.loads((tmp_path / "out" / "parity.json").read_text("utf-8"))["targets"][0]["losses"]
    for pruning, bits, both in zip(told["pruning"], told["bits"], told["both"], strict=True):
        assert pruning["after"] == bits["before"] and pruning["before"] == both["before"]
        assert bits["after"] == both["after"]
        assert both["ratio"] == pytest.approx(pruning["ratio"] * bits["ratio"])
        assert pruning["stderr"] > 0 and bits["stderr"] > 0
    assert told["pruning"][-1]["domain"] == ALL
    card = (tmp_path / "out" / "README.md").read_text("utf-8")
    assert "## What was lost" in card and f"{told['pruning'][-1]['ratio']:.3f}" in card
    first, _, _ = card.partition("## What it is")  # where a reader chooses
    assert "| against all experts |" in first and f"{told['both'][-1]['ratio']:.3f}" in first
    page = tmp_path / "page.html"
    checked = emo("validate", tmp_path / "out", "--html", page, "--json")
    assert checked.code == done.code, checked.err
    assert json.loads(checked.out)["targets"][0]["losses"] == told
    assert "losses.pruning.0.ratio" in page.read_text("utf-8")
