"""`export --rounding`: what each needs, what the package says of it, and what gptq buys."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from emo_export.files.manifest import Manifest
from tests.kit.command import Emo
from tests.kit.paths import GOLDEN, NANO

BASE = GOLDEN / "base"
TARGETS = ("--to", "gguf:q4_0", "--to", "onnx:int4")


@pytest.mark.slow  # emo-nano, twice
def test_gptq_is_nearer_to_the_float_model(tmp_path: Path, emo: Emo) -> None:
    text = ("--calibration", NANO / "calibration", "--calibration-tokens", 8192)
    heldout = ("--heldout", NANO / "heldout", "--heldout-tokens", 2048, "--json")
    ratios = {}
    for name, rounding in (("gptq", ()), ("weighted", ("--rounding", "weighted"))):
        to = (*text, *heldout, *rounding, "--to", "onnx:int4")
        made = emo("export", NANO, "-o", tmp_path / name, *to)
        assert made.code in (0, 4), made.err
        targets = Manifest.load(tmp_path / name).targets
        assert {entry.rounding for entry in targets.values()} == {name}
        (target,) = json.loads(made.out)["targets"]
        row = next(r for r in target["rows"] if r["against"] == "original")
        ratios[name] = row["measured"]["kl_mean"]
    assert ratios["gptq"] < ratios["weighted"]


@pytest.mark.slow
def test_gptq_writes_the_same_bytes_twice(tmp_path: Path, emo: Emo) -> None:
    text = ("--calibration", NANO / "calibration" / "c.jsonl", "--calibration-tokens", 512)
    found = []
    for name in ("one", "two"):
        made = emo("export", BASE, "-o", tmp_path / name, *TARGETS, *text, "--no-golden")
        assert made.code == 0, made.err
        assert "saw fewer tokens of" in made.err and "leans on the mean of their layer" in made.err
        files = [*(tmp_path / name).rglob("*.data"), *(tmp_path / name).glob("model*.gguf")]
        assert len(files) > 1
        found.append({file.name: file.read_bytes() for file in files})
    assert found[0] == found[1]


def test_what_makes_no_sense_is_refused(tmp_path: Path, emo: Emo) -> None:
    text = tmp_path / "a.txt"
    text.write_text("some words")
    for options, said in (
        (("--rounding", "gptq"), "--rounding gptq needs text"),
        (("--rounding", "weighted"), "needs --calibration or --imatrix"),
        (("--rounding", "nearest", "--calibration", text), "has no use for --calibration"),
        (("--rounding", "exact"), "'exact' is not one of"),
    ):
        done = emo("export", BASE, "-o", tmp_path / "x", *TARGETS, *options)
        assert done.code == 2 and said in " ".join(done.err.split()), done.err
