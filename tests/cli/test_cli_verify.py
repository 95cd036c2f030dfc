"""`verify`: its verdict as an exit code, as JSON, of the source, by the engines, and alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from emo_export.files.manifest import Manifest
from tests.kit.command import Emo
from tests.kit.flipping import flip, tensors_at
from tests.kit.packages import SMALL_TARGETS, package
from tests.kit.paths import GOLDEN
from tests.kit.without import without

BASE = GOLDEN / "base"
HEAVY = "torch,gguf,onnx,ml_dtypes,transformers,safetensors,tokenizers,xllamacpp,onnxruntime"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return shutil.copytree(package(BASE, SMALL_TARGETS), tmp_path / "copy")


def test_the_tensor_is_named_and_json_says_the_same(copy: Path, emo: Emo) -> None:
    whole = emo("verify", copy)
    assert whole.code == 0 and "every byte" in whole.out
    file, name, start, _ = next(
        one for one in tensors_at(copy) if one[1] == "blk.1.ffn_down_exps.weight"
    )
    flip(copy / file, start + 5, 6)
    wrong = emo("verify", copy)
    assert wrong.code == 1 and f"{copy / file}: its content differs" in wrong.err
    assert f"in tensor {name}\n" in wrong.err and wrong.out == ""
    told = json.loads(emo("verify", copy, "--json").out)
    assert not told["passed"] and told["problems"] == [
        {
            "path": file,
            "what": "content",
            "bytes": None,
            "expected": None,
            "places": [{"kind": "tensor", "name": name}],
        }
    ]


def test_it_needs_no_engine_and_no_converter(copy: Path, tmp_path: Path) -> None:
    done = without(HEAVY, tmp_path, "verify", copy, "--source", BASE)
    assert (done.returncode, done.stderr) == (0, "")


def test_another_source_is_told_by_its_tensor(copy: Path, tmp_path: Path, emo: Emo) -> None:
    same = emo("verify", copy, "--source", BASE)
    assert same.code == 0 and f"was made of {BASE}" in same.out
    other = shutil.copytree(BASE, tmp_path / "other")
    _, name, start, _ = next(one for one in tensors_at(other) if "experts.3.up_proj" in one[1])
    flip(other / "model.safetensors", start)
    (other / "config.json").write_text((other / "config.json").read_text() + "\n")
    wrong = emo("verify", copy, "--source", other, "--json")
    told = {one["path"]: one for one in json.loads(wrong.out)["source_problems"]}
    assert wrong.code == 1 and set(told) == {"config.json", "model.safetensors"}
    assert told["model.safetensors"]["places"] == [{"kind": "tensor", "name": name}]
    assert emo("verify", copy, "--source", tmp_path).code == 2


def test_what_has_no_manifest_is_refused(copy: Path, tmp_path: Path, emo: Emo) -> None:
    inside = emo("verify", copy / "model-F32.gguf")
    assert inside.code == 2 and f"try {copy}" in inside.err
    assert emo("verify", tmp_path / "nowhere").code == 2
    (copy / "manifest.json").write_text("{")
    assert emo("verify", copy).code == 2


def test_deep_needs_a_reference(tmp_path: Path, emo: Emo) -> None:
    folder = package(BASE, ("gguf:q4_0", "onnx:int4"), "--no-golden")
    done = emo("verify", folder, "--deep")
    assert done.code == 2 and "golden.npz" in done.err and "--reference" in done.err


@pytest.mark.slow
def test_deep_replays_with_the_engines(copy: Path, emo: Emo) -> None:
    done = emo("verify", copy, "--deep")
    assert done.code in (0, 4) and done.out.count("pass") >= 2, done.err
    model = copy / str(Manifest.load(copy).targets["gguf:f32"].path)
    flip(model, model.stat().st_size - 9)
    wrong = emo("verify", copy, "--deep", "--json")
    results = {one["target"]: one for one in json.loads(wrong.out)["targets"]}
    assert wrong.code == 1
    assert results["gguf:f32"]["damage"] and not results["gguf:f32"]["rows"]
    assert results["onnx:f32"]["rows"] and not results["onnx:f32"]["damage"]
