"""What `inspect` says of real checkpoints, files and folders, and what it warns about."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from emo_export.errors import EmoExportError
from emo_export.files.manifest import Origin, write_manifest
from emo_export.files.target_entry import TargetEntry
from emo_export.inspect.checkpoint import inspect_path, size_text
from emo_export.model.checkpoint import Checkpoint
from emo_export.spec import Spec
from tests.kit.bad_gguf import rewrite
from tests.kit.inspecting import lengthen, shown
from tests.kit.paths import GOLDEN, NANO
from tests.kit.synth import make_checkpoint

Files = dict[str, Path]


@pytest.fixture
def package(small_exports: Files, tmp_path: Path) -> Path:
    folder = tmp_path / "package"
    folder.mkdir()
    shutil.copy(small_exports["gguf:q4_0"], folder / "model-Q4_0.gguf")
    shutil.copytree(small_exports["onnx:int4"], folder / "onnx-int4")
    verdicts = [{"target": "gguf:q4_0", "passed": True}, {"target": "onnx:int4", "passed": False}]
    (folder / "parity.json").write_text(json.dumps({"passed": False, "targets": verdicts}))
    targets = {
        "gguf:q4_0": {"path": "model-Q4_0.gguf", "recipe": {"expert": "q4_0"}, "fallbacks": {}},
        "onnx:int4": {
            "path": "onnx-int4",
            "recipe": {"expert": "int4b32"},
            "fallbacks": {"a": ["int4b32", "int4b16"], "b": ["int4b32", "int4b16"]},
        },
    }
    entries = {name: TargetEntry.from_dict(Spec.parse(name), t) for name, t in targets.items()}
    write_manifest(folder, Origin({"name": "synth"}, {"emo-export": "0"}), entries)
    return folder


# --- checkpoints -------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [NANO, GOLDEN / "base", GOLDEN / "pruned", GOLDEN / "sharded"])
def test_a_good_checkpoint_has_no_warning(path: Path) -> None:
    found = inspect_path(path)
    opened = Checkpoint.open(path)
    assert (found.kind, found.warnings) == ("checkpoint", [])
    elements = sum(int(np.prod(tensor.shape)) for tensor in opened.values())
    assert found.facts["parameters"]["total"] == elements
    assert found.facts["storage"]["bytes"] == opened.nbytes
    assert sum(found.facts["bytes_by_part"].values()) == opened.nbytes
    assert str(path) in shown(found)


def test_the_released_shape_has_the_published_counts(tmp_path: Path) -> None:
    config = json.loads((GOLDEN / "base" / "config.json").read_text("utf-8"))
    config |= {
        "hidden_size": 2048,
        "num_hidden_layers": 16,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "intermediate_size": 1024,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "num_shared_experts": 1,
        "vocab_size": 100352,
        "max_position_embeddings": -1,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = inspect_path(tmp_path)
    assert found.facts["parameters"]["total"] == 13_568_641_024
    assert 1.27e9 < found.facts["parameters"]["active_per_token"] < 1.29e9
    assert found.facts["shape"]["context"] == 4096
    said = " ".join(found.warnings)
    assert "max_position_embeddings is -1" in said
    assert "model.safetensors" in said and "tokenizer.json" in said


def test_layers_are_told_apart() -> None:
    facts = inspect_path(GOLDEN / "densefirst").facts
    assert facts["experts"] == [
        {"layers": "0", "experts": 0},
        {"layers": "1-2", "experts": 16, "shared": 1, "always_active": [], "per_token": 4},
    ]
    assert facts["bytes_by_part"]["dense"] > 0


@pytest.mark.parametrize("tied", [False, True])
def test_active_parameters_are_what_a_token_reads(tmp_path: Path, tied: bool) -> None:
    path = make_checkpoint(tmp_path, tie_word_embeddings=tied, num_experts_per_layer=[6, 8])
    found = inspect_path(path)
    opened = Checkpoint.open(path)
    matrices = {name: int(np.prod(tensor.shape)) for name, tensor in opened.items()}
    expert = 3 * 64 * 32
    rest = sum(size for name, size in matrices.items() if ".experts." not in name)
    embedding = 0 if tied else 511 * 64  # of which a token reads one row; a tied one is the head
    active = rest - embedding + 2 * 3 * expert
    assert found.facts["parameters"] == {
        "total": sum(matrices.values()),
        "active_per_token": active,
    }


def test_pruning_is_told(tmp_path: Path) -> None:
    facts = inspect_path(GOLDEN / "pruned").facts
    assert facts["pruning"]["original_model"] == "base"
    path = Path(shutil.copytree(GOLDEN / "pruned", tmp_path / "pruned"))
    metadata = json.loads((path / "pruning_metadata.json").read_text())
    metadata["experts_kept_per_layer"][0].pop()
    (path / "pruning_metadata.json").write_text(json.dumps(metadata))
    assert "other numbers of experts" in " ".join(inspect_path(path).warnings)


def test_what_targets_can_express_it_comes_from_the_caller() -> None:
    found = inspect_path(NANO, {"gguf": "no: norm_topk_prob", "onnx": "yes"})
    assert found.facts["targets"]["gguf"] == "no: norm_topk_prob"
    assert "no: norm_topk_prob" in shown(found)


def test_a_damaged_checkpoint_is_a_warning_with_its_shape(synth: Path) -> None:
    tensors = load_file(synth / "model.safetensors")
    tensors.pop("model.norm.weight")
    save_file(tensors, synth / "model.safetensors")
    (synth / "tokenizer.json").unlink()
    found = inspect_path(synth)
    assert found.facts["shape"]["hidden_size"] == 64
    assert "storage" not in found.facts
    said = " ".join(found.warnings)
    assert "model.norm.weight is missing" in said and "no tokenizer.json" in said


def test_a_checkpoint_without_an_end_token(synth: Path) -> None:
    config = json.loads((synth / "config.json").read_text()) | {"eos_token_id": None}
    (synth / "config.json").write_text(json.dumps(config))
    assert inspect_path(synth).warnings == []  # generation_config.json has it
    (synth / "generation_config.json").unlink()
    assert "no eos_token_id" in " ".join(inspect_path(synth).warnings)


# --- packages ----------------------------------------------------------------------------------


def test_a_package(package: Path) -> None:
    found = inspect_path(package)
    assert found.kind == "package"
    assert found.warnings == ["onnx:int4: failed its parity check; see parity.json"]
    targets = found.facts["targets"]
    assert targets["gguf:q4_0"]["parity"] == "passed"
    assert targets["onnx:int4"]["parity"] == "FAILED"
    assert targets["onnx:int4"]["fallbacks"] == {"int4b32 -> int4b16": 2}
    assert targets["gguf:q4_0"]["bytes"] == (package / "model-Q4_0.gguf").stat().st_size
    assert targets["onnx:int4"]["contents"]["graph"]["kind"] == "qmoe"
    text = shown(found)
    assert "gguf:q4_0" in text and "expert q4_0" in text and "int4b32 -> int4b16 2" in text


def test_package_warnings(package: Path) -> None:
    (package / "parity.json").unlink()
    lengthen(package / "onnx-int4")
    (package / "model-Q4_0.gguf").write_bytes(b"GGUF")
    said = inspect_path(package).warnings
    size = (package / "onnx-int4" / "model.onnx.data").stat().st_size
    assert any("no parity.json" in line for line in said)
    assert "parity.json is missing, the manifest has it" in said
    assert any(line.startswith("gguf:q4_0:") and "version" in line for line in said)
    assert any("onnx:int4: model.onnx.data has 1 bytes more" in line for line in said)
    want = f"onnx-int4/model.onnx.data has {size} bytes, the manifest says {size - 1}"
    assert want in said


def test_a_package_that_names_itself_as_target_ends(package: Path) -> None:
    manifest = json.loads((package / "manifest.json").read_text())
    manifest["targets"]["onnx:int4"]["path"] = "."
    (package / "manifest.json").write_text(json.dumps(manifest))
    assert any("whole exported folder" in line for line in inspect_path(package).warnings)


@pytest.mark.parametrize("content", ["{}", "[]", "not json", '{"targets": [1]}', '{"targets": 3}'])
def test_a_damaged_parity_report_is_a_warning(package: Path, content: str) -> None:
    (package / "parity.json").write_text(content)
    assert any("is not a parity report" in line for line in inspect_path(package).warnings)


# --- what is none of these ---------------------------------------------------------------------


def test_other_paths_are_refused_with_what_is_accepted(tmp_path: Path) -> None:
    def message(path: Path) -> str:
        with pytest.raises(EmoExportError) as error:
            inspect_path(path)
        assert "a Hugging Face checkpoint folder" in str(error.value)
        return str(error.value)

    assert "neither a file nor a folder" in message(tmp_path / "nothing")
    assert "a folder with nothing" in message(tmp_path)
    (tmp_path / "notes.txt").write_text("x")
    assert "a folder with notes.txt" in message(tmp_path)
    assert "is no model" in message(tmp_path / "notes.txt")
    assert "inspect the folder" in message(NANO / "golden.npz")


def test_a_config_of_another_model_is_an_error(synth: Path) -> None:
    config = json.loads((synth / "config.json").read_text()) | {"model_type": "llama"}
    (synth / "config.json").write_text(json.dumps(config))
    with pytest.raises(EmoExportError, match="llama"):
        inspect_path(synth)


def test_sizes_read_well() -> None:
    sizes = [600, 1500, 15_700_000, 2_411_000_000, 54_300_000_000, 1_234_000_000_000]
    said = ["600 B", "1.50 kB", "15.7 MB", "2.41 GB", "54.3 GB", "1,234 GB"]
    assert [size_text(size) for size in sizes] == said


def test_findings_in_a_package_name_their_target(package: Path, small_exports: Files) -> None:
    changed = {"tokenizer.ggml.add_bos_token": True}
    rewrite(small_exports["gguf:q4_0"], package / "model-Q4_0.gguf", changed)
    found = inspect_path(package)
    wrong = [finding for finding in found.findings if finding.level == "wrong"]
    assert [finding.target for finding in wrong] == ["gguf:q4_0"]
    assert wrong[0].text in found.warnings
    assert "1 thing wrong" in found.facts["targets"]["gguf:q4_0"]["judgement"]
    assert shown(found).count("add_bos_token is true") == 1
