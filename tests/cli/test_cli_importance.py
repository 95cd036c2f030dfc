"""Exports with an importance matrix: what is in the folder, and validating it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader

from emo_export.converters.gguf.formats import GGML_FORMATS
from emo_export.files.manifest import Manifest
from emo_export.text.sample import read_calibration
from emo_export.text.tokenizer import open_tokenizer
from tests.kit.command import Emo, run_here
from tests.kit.exporting import case
from tests.kit.oracle import Weights
from tests.kit.paths import NANO
from tests.kit.synth import make_checkpoint
from tests.reference.test_calibrate import listen

TARGETS = ("--to", "gguf:q4_k_m", "--to", "gguf:q2_k", "--to", "onnx:int4")
FILES = ("model-Q4_K_M.gguf", "model-Q2_K.gguf", "onnx-int4/model.onnx.data")
TOKENS = 600


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows that fit blocks of 256, a lone layer."""
    folder = tmp_path_factory.mktemp("wide") / "checkpoint"
    sizes = {"hidden_size": 256, "intermediate_size": 256, "num_experts": 5}
    return make_checkpoint(folder, num_hidden_layers=1, num_attention_heads=4, **sizes)


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    shutil.copy(NANO / "calibration" / "c.jsonl", folder / "c.jsonl")
    (folder / "words.txt").write_text("the harbour was quiet in the morning " * 50)
    return folder


@pytest.fixture(scope="module")
def calibrated(wide: Path, texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("calibrated") / "out"
    options = ("--calibration", texts, "--calibration-tokens", TOKENS, "--json")
    options = (*options, "--rounding", "weighted", "--heldout-tokens", 128)
    done = run_here("export", wide, "-o", out, *TARGETS, *options)
    assert done.code == 0, done.err + done.out
    assert json.loads(done.out)["passed"] is True
    return out


def keys_of(path: Path) -> dict[str, Any]:
    fields = GGUFReader(path).fields
    return {k: f.contents() for k, f in fields.items() if k.startswith("quantize.")}


def same(one: Path, other: Path) -> None:
    for name in FILES:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


def test_the_folder_keeps_the_matrix_and_verify_covers_it(
    calibrated: Path, tmp_path: Path, emo: Emo
) -> None:
    assert emo("verify", calibrated).code == 0
    copy = shutil.copytree(calibrated, tmp_path / "copy")
    with (copy / "imatrix.gguf").open("r+b") as file:
        file.seek(-3, 2)
        file.write(b"\x01")
    done = emo("verify", copy)
    assert done.code == 1 and "imatrix.gguf" in done.err
    (copy / "imatrix.gguf").unlink()
    assert "imatrix.gguf: is missing" in emo("verify", copy).err


def test_manifest_and_keys_name_the_matrix(calibrated: Path) -> None:
    loaded = Manifest.load(calibrated).targets
    targets = {name: entry.as_dict() for name, entry in loaded.items()}
    about = {"file": "imatrix.gguf", "source": "c.jsonl, words.txt", "tokens": TOKENS}
    for spec in ("gguf:q4_k_m", "gguf:q2_k"):
        assert targets[spec]["importance"] == about
        assert targets[spec]["arch"] == "deepseek"
        assert targets[spec]["fallbacks"] == {}
    assert targets["gguf:q2_k"]["recipe"] == {
        "embed": "q6_k",
        "attention": "q6_k",
        "router": "f32",
        "expert": "q2_k",
        "expert_down": "q3_k",
        "shared_expert": "q6_k",
        "head": "q6_k",
        "vector": "f32",
    }
    assert "importance" not in targets["onnx:int4"] and "arch" not in targets["onnx:int4"]
    for name in FILES[:2]:
        found = keys_of(calibrated / name)
        assert found["quantize.imatrix.file"] == "imatrix.gguf"
        assert found["quantize.imatrix.dataset"] == "c.jsonl, words.txt"
        assert found["quantize.imatrix.chunks_count"] == 2


def test_the_matrix_is_what_the_oracle_hears(calibrated: Path, wide: Path, texts: Path) -> None:
    encode = open_tokenizer(wide, 6144)
    assert encode is not None
    sequences = read_calibration([texts], encode, TOKENS, 128).sequences
    assert sum(map(len, sequences)) == TOKENS
    heard = listen(wide, sequences)
    found = {t.name: np.array(t.data) for t in GGUFReader(calibrated / "imatrix.gguf").tensors}
    for theirs, ours in {
        "blk.0.attn_q.weight": "layers.0.self_attn.q_proj",
        "blk.0.attn_output.weight": "layers.0.self_attn.o_proj",
        "blk.0.ffn_down_shexp.weight": "layers.0.mlp.experts.4.down_proj",
    }.items():
        want = heard.sums[f"model.{ours}.weight"]
        np.testing.assert_allclose(found[theirs + ".in_sum2"][0], want, 1e-3, 1e-5 * want.max())
        assert found[theirs + ".counts"].tolist() == [[TOKENS]]
    for expert in range(4):
        name = f"model.layers.0.mlp.experts.{expert}.up_proj.weight"
        assert found["blk.0.ffn_up_exps.weight.counts"][expert, 0] == heard.counts[name]


def test_its_matrix_given_to_another_export_makes_the_same_bytes(
    calibrated: Path, wide: Path, tmp_path: Path, emo: Emo
) -> None:
    again, matrix = tmp_path / "again", calibrated / "imatrix.gguf"
    done = emo("export", wide, "-o", again, *TARGETS, "--imatrix", matrix, "--no-golden")
    assert done.code == 0 and done.out == ""
    same(calibrated, again)
    assert (again / "imatrix.gguf").read_bytes() == matrix.read_bytes()
    about, first = (Manifest.load(f).targets["gguf:q2_k"].as_dict() for f in (again, calibrated))
    assert about["importance"].pop("tokens") == 1024  # in whole chunks of 512
    assert first["importance"].pop("tokens") == TOKENS
    assert about == first


@pytest.mark.slow
def test_two_exports_are_the_same_and_importance_matters(
    calibrated: Path, wide: Path, texts: Path, tmp_path: Path, emo: Emo
) -> None:
    """Without a reference, and thus on other threads, the bytes are still the same."""
    text = ("--calibration", texts / "c.jsonl", "--calibration", texts / "words.txt")
    text = (*text, "--rounding", "weighted")
    arguments = ("export", wide, *TARGETS, "--no-golden", "--json")
    for name in ("one", "two"):
        done = emo(*arguments, "-o", tmp_path / name, *text, "--calibration-tokens", TOKENS)
        assert done.code == 0 and json.loads(done.out) == {"passed": None, "targets": []}
        same(calibrated, tmp_path / name)
    even = ("export", wide, "-o", tmp_path / "even", "--to", "gguf:q4_k_m", "--no-golden")
    assert emo(*even).code == 0
    assert not keys_of(tmp_path / "even" / FILES[0]).keys() & keys_of(calibrated / FILES[0]).keys()
    plain, weighed = (GGUFReader(f / FILES[0]).tensors for f in (tmp_path / "even", calibrated))
    changed = {
        a.name for a, b in zip(plain, weighed, strict=True) if a.data.tobytes() != b.data.tobytes()
    }
    assert changed == {
        "output.weight",
        *(f"blk.0.attn_{part}.weight" for part in ("q", "k", "v", "output")),
        *(f"blk.0.ffn_{p}_{k}.weight" for p in ("gate", "up", "down") for k in ("exps", "shexp")),
    }


@pytest.mark.slow
def test_validate_with_the_reference_reads_the_weights_back(
    calibrated: Path, wide: Path, tmp_path: Path, emo: Emo
) -> None:
    done = emo("validate", calibrated, "--reference", wide, "--json")
    assert done.code == 0
    stored = json.loads((calibrated / "parity.json").read_text())["targets"]
    for target, before in zip(json.loads(done.out)["targets"], stored, strict=True):
        for row, first in zip(target["rows"], before["rows"], strict=True):
            assert row["measured"]["kl_mean"] == pytest.approx(first["measured"]["kl_mean"], 0.02)
            if row["arithmetic"] == "exact":
                assert row["measured"]["kl_mean"] <= 1e-10
    copy = shutil.copytree(calibrated, tmp_path / "copy")
    (copy / "imatrix.gguf").unlink()  # which nothing but another export needs
    assert emo("validate", copy, "--target", "gguf:q2_k").code == 0
    done = emo("validate", copy / FILES[1], "--reference", wide, "--json")
    assert done.code == 0
    exactly_its_own_weights(done.out)


def exactly_its_own_weights(out: str) -> None:
    """The float run of a target and the reference on what its file holds agree."""
    (target,) = json.loads(out)["targets"]
    exact = [row for row in target["rows"] if row["arithmetic"] == "exact"]
    assert len(exact) == 2 and all(row["measured"]["kl_mean"] <= 1e-10 for row in exact)


@pytest.mark.slow
def test_a_file_away_from_its_folder_is_judged_by_its_own_weights(
    calibrated: Path, wide: Path, tmp_path: Path, emo: Emo
) -> None:
    alone = Path(shutil.copy(calibrated / FILES[0], tmp_path / "alone.gguf"))
    done = emo("validate", alone, "--reference", wide, "--json")
    assert done.code == 0
    exactly_its_own_weights(done.out)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dense_middle", "norm_topk_counts", "tied", "no_shared"])
def test_the_matrix_read_back_makes_the_same_bytes_in_any_graph(
    name: str, texts: Path, tmp_path: Path, emo: Emo
) -> None:
    arguments = ("export", case(name).folder, "--to", "gguf:q4_0", "--no-golden")
    one, two = tmp_path / "one", tmp_path / "two"
    weighted = ("--rounding", "weighted", "--calibration", texts / "words.txt")
    assert emo(*arguments, "-o", one, *weighted).code == 0
    assert emo(*arguments, "-o", two, "--imatrix", one / "imatrix.gguf").code == 0
    for file in ("model-Q4_0.gguf", "imatrix.gguf"):
        assert (one / file).read_bytes() == (two / file).read_bytes()
    done = emo("validate", two, "--reference", case(name).folder, "--json")
    exactly_its_own_weights(done.out)


def test_matrices_that_are_stored_larger_keep_their_importance(
    texts: Path, tmp_path: Path, emo: Emo
) -> None:
    folder, out = case("always_active_counts").folder, tmp_path / "out"
    options = ("--to", "gguf:q4_0", "--no-golden", "--calibration", texts / "words.txt")
    options = (*options, "--rounding", "weighted")
    assert emo("export", folder, "-o", out, *options).code == 0
    stored = {t.name: np.array(t.data) for t in GGUFReader(out / "model-Q4_0.gguf").tensors}
    matrix = {t.name: np.array(t.data) for t in GGUFReader(out / "imatrix.gguf").tensors}
    name, weights = "blk.1.ffn_down_exps.weight", Weights(folder)
    for expert in range(3):  # of 9 places, so that the graph weighs each by a third
        rows = weights(f"model.layers.1.mlp.experts.{expert}.down_proj.weight") * 3
        importance = matrix[name + ".in_sum2"][expert] / matrix[name + ".counts"][expert]
        kind = GGML_FORMATS["q4_0"]
        want = kind.quantize(rows.astype(np.float32), importance)["rows"]
        np.testing.assert_array_equal(stored[name][expert], want)
        assert (kind.quantize(rows.astype(np.float32))["rows"] != want).any()


@pytest.mark.parametrize("name", ["mha", "always_active_counts"])
def test_experts_that_saw_no_token_are_named(name: str, tmp_path: Path, emo: Emo) -> None:
    folder, text = case(name).folder, tmp_path / "short.txt"
    text.write_text("a b")
    out = tmp_path / "out"
    arguments = ("--to", "gguf:q4_0", "--calibration", text, "--no-golden", "--json")
    done = emo("export", folder, "-o", out, *arguments)
    assert done.code == 0 and json.loads(done.out)["targets"] == []
    unseen = []
    for layer in (0, 1):
        tensors = {t.name: np.array(t.data) for t in GGUFReader(out / "imatrix.gguf").tensors}
        counts = tensors[f"blk.{layer}.ffn_up_exps.weight.counts"].reshape(-1)
        real = 3 if (name, layer) == ("always_active_counts", 1) else len(counts)
        unseen += [f"{e} of layer {layer}" for e in range(real) if not counts[e]]
    (line,) = [line for line in done.err.splitlines() if "saw no token" in line]
    assert f"warning: {len(unseen)} expert{'s' * (len(unseen) > 1)} saw no token of sho" in line
    listed = ", ".join(unseen[:8]) + (f" and {len(unseen) - 8} more" if len(unseen) > 8 else "")
    assert unseen and f"({listed})" in line


@pytest.mark.slow
def test_a_text_whose_name_is_not_unicode(wide: Path, tmp_path: Path, emo: Emo) -> None:
    text = tmp_path / "caf\udce9.txt"
    text.write_text("the harbour was quiet in the morning")
    out = tmp_path / "out"
    arguments = ("--to", "gguf:q4_0", "--calibration", text, "--no-golden")
    done = emo("export", wide, "-o", out, *arguments)
    assert done.code == 0 and "Traceback" not in done.err
    made = Manifest.load(out).targets["gguf:q4_0"].importance
    assert made is not None and made.source == "caf?.txt"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"recipe": {"expert": "q9"}}, "gives expert the type q9"),
        ({"recipe": {"foo": "q8_0"}}, "gives foo the type q8_0"),
        ({"recipe": []}, "is not a manifest"),
        ({"recipe": {"expert": []}}, "is not a manifest"),
        ({"importance": 5}, "is not a manifest"),
        ({"importance": {}}, "is not a manifest"),
        ({"importance": {"file": "../imatrix.gguf"}}, "lies outside the folder"),
        ({"recipe": {"expert": "q4_0"}}, "is not what manifest.json says: blk.0.ffn_gate_exps"),
        ({"arch": "glm4moe"}, "is not what manifest.json says: its architecture is deepseek"),
    ],
)
def test_a_folder_that_was_tampered_with_is_refused(
    change: dict[str, Any], said: str, calibrated: Path, wide: Path, tmp_path: Path, emo: Emo
) -> None:
    copy = shutil.copytree(calibrated, tmp_path / "copy")
    manifest = json.loads((copy / "manifest.json").read_text())
    entry = manifest["targets"]["gguf:q4_k_m"]
    recipe = change.get("recipe")
    entry |= {"recipe": entry["recipe"] | recipe} if isinstance(recipe, dict) else change
    (copy / "manifest.json").write_text(json.dumps(manifest))
    done = emo("validate", copy, "--target", "gguf:q4_k_m", "--reference", wide)
    assert done.code == 2 and said in done.err


@pytest.mark.slow
def test_a_file_that_cannot_be_read_back_keeps_no_other_from_being_judged(
    calibrated: Path, wide: Path, tmp_path: Path, emo: Emo
) -> None:
    copy = shutil.copytree(calibrated, tmp_path / "copy")
    with (copy / "onnx-int4" / "model.onnx.data").open("r+b") as file:
        file.truncate(5000)
    done = emo("validate", copy, "--reference", wide, "--json")
    targets = {target["target"]: target for target in json.loads(done.out)["targets"]}
    assert list(targets) == ["gguf:q4_k_m", "gguf:q2_k", "onnx:int4"]
    assert [target["passed"] for target in targets.values()] == [True, True, False]
    assert "'model.onnx.data', which has 5000" in targets["onnx:int4"]["refusal"]["text"]
    assert done.code == 1 and "onnx:int4" in done.err  # damaged, says manifest.json
