"""The three ONNX graphs from the command line: exported together, judged, run and described."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from emo_export.files.manifest import Manifest
from tests.kit.command import NOT_FAILED, Emo
from tests.kit.synth import make_checkpoint

TARGETS = {
    "onnx:int8": "onnx-int8",
    "onnx:int4@if": "onnx-int4-if",
    "onnx:f32@standard": "onnx-f32-standard",
    "onnx:int8@standard": "onnx-int8-standard",
}
NEEDS = {"onnx:int8": "1.31", "onnx:int4@if": "1.22"} | dict.fromkeys(list(TARGETS)[2:], "1.23")


@pytest.fixture
def package(tmp_path: Path, emo: Emo) -> Path:
    """One layer in four targets, validated."""
    folder = make_checkpoint(tmp_path / "checkpoint", num_hidden_layers=1)
    to = [word for spec in TARGETS for word in ("--to", spec.replace("int8", "INT8"))]
    to[1] += "@qmoe"  # the default by its name
    done = emo("export", folder, "-o", tmp_path / "out", *to, "--heldout-tokens", "128", "--json")
    assert done.code in NOT_FAILED, done.err
    report = json.loads(done.out)
    assert [target["target"] for target in report["targets"]] == list(TARGETS)
    for target in report["targets"]:
        for row in target["rows"]:
            if "f32" in target["target"] or row["arithmetic"] == "exact":
                assert row["measured"]["kl_mean"] <= 1e-10
    return tmp_path / "out"


@pytest.mark.slow
def test_graphs_together(package: Path, emo: Emo) -> None:
    targets = Manifest.load(package).targets
    assert {name: entry.path for name, entry in targets.items()} == TARGETS
    assert {spec: entry.onnxruntime for spec, entry in targets.items()} == NEEDS
    assert emo("verify", package).code == 0
    card = (package / "README.md").read_text()
    for spec, place in TARGETS.items():
        assert f"`{place}`: ONNX Runtime {NEEDS[spec]} or newer" in card
    done = emo("validate", package, "--target", "onnx:int4@if", "--json")
    assert [t["target"] for t in json.loads(done.out)["targets"]] == ["onnx:int4@if"]
    assert emo("run", package, "--target", "onnx:int8@qmoe", "-p", "a", "-n", "1").code == 0
    # A folder by itself knows its graph too, and so its limits.
    alone = package.rename(package.with_name("moved"))
    (alone / "manifest.json").unlink()
    for spec, place in TARGETS.items():
        done = emo("validate", alone / place, "--json")
        assert done.code in NOT_FAILED and json.loads(done.out)["targets"][0]["target"] == spec
        done = emo("run", alone / place, "-p", "def", "-n", "3", "--temperature", "0")
        assert done.code == 0 and done.out.strip()
        done = emo("inspect", alone / place, "--json")
        kind = spec.partition("@")[2] or "qmoe"
        assert json.loads(done.out)["facts"]["graph"]["kind"] == kind
