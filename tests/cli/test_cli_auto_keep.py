"""`--keep auto`: the table is what `domains` measures, the export has the count that it found."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from emo_export.files.manifest import Manifest
from emo_export.jobs.auto_keep import counts_to_try
from emo_export.model.checkpoint import Checkpoint
from emo_export.parity.losses import Loss
from emo_export.selection.auto import Found, Tried
from tests.kit.command import Emo
from tests.kit.exporting import case
from tests.kit.paths import GOLDEN

BASE = GOLDEN / "base"


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "code.txt"
    path.write_text("def mean(values):\n    return sum(values) / len(values)\n" * 10, "utf-8")
    return path


def test_it_keeps_the_fewest_within_the_loss(tmp_path: Path, text: Path, emo: Emo) -> None:
    shared = ("--calibration", text, "--heldout", text)
    args = ("--keep", "auto", "--loss", "5%", "--no-validate", "--to", "onnx:f32")
    done = emo("export", BASE, "-o", tmp_path / "out", *shared, *args)
    assert done.code == 0, done.err
    rows = re.findall(r"^ +(\d+) +[\d.]+ +([\d.]+) ± [\d.]+ +(chosen)?", done.err, re.M)
    assert [int(keep) for keep, _, _ in rows] == counts_to_try(Checkpoint.open(BASE).config)
    (at,) = (i for i, (_, _, mark) in enumerate(rows) if mark)
    assert float(rows[at][1]) <= 1.05 and all(float(ratio) > 1.05 for _, ratio, _ in rows[:at])
    measured = emo("domains", BASE, *shared, "--keep", rows[at][0], "--json")
    ratio = json.loads(measured.out)["rows"][0]["loss"][0]["ratio"]
    assert f"{ratio:.3f}" == rows[at][1]
    kept = Manifest.load(tmp_path / "out").kept
    assert kept is not None and {len(experts) for experts in kept} == {int(rows[at][0])}


@pytest.mark.parametrize("source", ["checkpoint", "package"])
def test_prune_finds_it_too(
    source: str, tmp_path: Path, text: Path, emo: Emo, small_exports: dict[str, Path]
) -> None:
    path = BASE if source == "checkpoint" else small_exports["gguf:q4_0"]
    out = tmp_path / ("out" if source == "checkpoint" else "out.gguf")
    shared = (path, "--calibration", text, "--heldout", text, "-o")
    done = emo("prune", *shared, out, "--keep", "auto", "--loss", "60%", "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert f" {found['pruning']['prune_keep_k']} " in done.err.partition("chosen")[0]
    assert found["loss"][0]["ratio"] <= 1.6
    none = emo("prune", *shared, tmp_path / "none", "--keep", "auto", "--loss", "-99%")
    assert none.code == 2
    no_loss = emo("prune", *shared, tmp_path / "none", "--keep", "auto", "--no-loss")
    assert no_loss.code == 2 and "--no-loss leaves out" in " ".join(no_loss.err.split())


def test_the_first_within_the_limit_is_found_and_none_is_told() -> None:
    ratios = {2: 1.5, 4: 1.03, 8: 1.01, 16: 1.02}
    tried = tuple(Tried(k, Loss("all", 9, 1.0, r, r, None)) for k, r in ratios.items())
    assert Found(tried, "all", 0.02).keep == 8 and Found(tried, "all", 0.6).keep == 2
    assert Found(tried, "all", 0.001).keep is None


def test_counts_that_no_layer_can_have_are_left_out() -> None:
    assert counts_to_try(Checkpoint.open(BASE).config) == [2, 3, 4, 6, 8, 12]
    assert counts_to_try(Checkpoint.open(case("two_shared").folder).config) == [3, 4, 6]


def test_what_makes_no_sense_is_refused(tmp_path: Path, text: Path, emo: Emo) -> None:
    base = ("export", BASE, "-o", tmp_path / "x", "--to", "onnx:f32")
    for args, said in (
        (("--keep", "auto"), "--keep auto needs --calibration"),
        (("--keep", "auto", "--calibration", text, "--no-golden"), "judges on held-out text"),
        (("--keep", 6, "--loss", "2%", "--calibration", text), "--loss says what --keep auto"),
        (("--keep", "auto", "--loss", "much", "--calibration", text), "expected a share"),
        (("--keep", "auto", "--domain", f"a={text}"), "--keep auto finds one number"),
    ):
        done = emo(*base, *args)
        assert done.code == 2 and said in " ".join(done.err.split()), done.err
