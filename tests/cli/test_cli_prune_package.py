"""`prune` of what was exported: chosen on a package's own weights, and nothing half-written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from emo_export.runtimes.opening import open_runtime, tokenizer_of
from tests.kit.bad_gguf import rewrite
from tests.kit.command import Emo
from tests.kit.exporting import exported
from tests.kit.packages import package
from tests.kit.paths import GOLDEN

TEXT = "def mean(values):\n    return sum(values) / len(values)\n\nint main(void) { return 0; }\n"
BASE = GOLDEN / "base"


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT * 8, "utf-8")
    return path


def whole_loss(told: dict[str, Any]) -> dict[str, Any]:
    return next(one for one in told["loss"] if one["domain"] == "all")


@pytest.mark.parametrize(("target", "method"), [("gguf:f32", "router"), ("onnx:f32", "reap")])
def test_float32_packages_choose_what_their_checkpoint_does(
    target: str, method: str, tmp_path: Path, text: Path, emo: Emo
) -> None:
    """Also in the tokens of llama.cpp, and with the same loss."""
    asked = ("--keep", 6, "--calibration", text, "--method", method, "--json")
    args = (*asked, "--heldout", text)
    one = emo("prune", BASE, "-o", tmp_path / "checkpoint", *args)
    two = emo("prune", exported(BASE, target), "-o", tmp_path / "small.gguf", *args)
    assert (one.code, two.code) == (0, 0), two.err
    want, found = json.loads(one.out), json.loads(two.out)
    kept = "experts_kept_per_layer"
    assert found["pruning"][kept] == want["pruning"][kept]
    for key in ("before", "after"):
        assert whole_loss(found)[key] == pytest.approx(whole_loss(want)[key], rel=1e-4)
    for made in ("checkpoint", "small.gguf"):
        assert emo("verify", tmp_path / made).code == 0
    runtime = open_runtime(tmp_path / "small.gguf", 1)
    ids = tokenizer_of(tmp_path / "small.gguf", runtime).encode(TEXT)
    assert len(ids) > 9 and runtime.vocab_size == 512
    runtime.close()


@pytest.mark.slow
def test_one_target_of_a_folder(tmp_path: Path, text: Path, emo: Emo) -> None:
    folder = package(BASE, ("gguf:q4_0", "onnx:int4"), "--no-golden")
    args = ("--keep", 6, "--calibration", text)
    several = emo("prune", folder, "-o", tmp_path / "x", *args)
    assert several.code == 2 and "2 targets, gguf:q4_0, onnx:int4" in several.err
    done = emo("prune", folder, "--target", "onnx:int4", "-o", tmp_path / "x", *args)
    assert done.code == 0, done.err
    assert "What pruning costs" in done.out and "6 experts a layer were kept" in done.err
    assert (tmp_path / "x" / "genai_config.json").is_file()
    config = json.loads((tmp_path / "x" / "config.json").read_text("utf-8"))
    assert config["num_experts"] == 6
    seen = emo("inspect", tmp_path / "x")
    assert seen.code == 0, seen.err
    again = emo("prune", folder, "--target", "onnx:int4", "-o", tmp_path / "x", *args)
    assert again.code == 2 and "or add --overwrite" in again.err
    anew = emo("prune", folder, "--target", "onnx:int4", "-o", tmp_path / "x", *args, "--overwrite")
    assert anew.code == 0 and sorted(path.name for path in tmp_path.glob("*x")) == ["x"]
    sharded = emo("prune", folder, "-o", tmp_path / "y", *args, "--max-shard-size", "1GB")
    assert sharded.code == 2 and "--max-shard-size is for checkpoints" in sharded.err


def test_what_cannot_be_pruned_leaves_nothing(tmp_path: Path, text: Path, emo: Emo) -> None:
    source = exported(BASE, "gguf:f32")
    without = rewrite(source, tmp_path / "a.gguf", {"tokenizer.ggml.model": "none"})
    torn = tmp_path / "onnx"
    shutil.copytree(exported(BASE, "onnx:f32"), torn)
    data = torn / "model.onnx.data"
    data.write_bytes(data.read_bytes()[: -(1 << 20)])
    before = sorted(tmp_path.iterdir())
    args = ("--keep", 6, "--calibration", text, "--no-loss")
    for path, said in ((without, "has no tokenizer"), (torn, "model.onnx.data', which has")):
        done = emo("prune", path, "-o", tmp_path / "x.gguf", *args)
        assert done.code == 2 and said in done.err, done.err
    scaled = emo("prune", source, "-o", tmp_path / "x.gguf", *args, "--rescale")
    assert scaled.code == 2 and "prune the checkpoint" in scaled.err
    assert sorted(tmp_path.iterdir()) == before
