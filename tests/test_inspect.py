"""What `inspect` says of real checkpoints, files and folders, and what it warns about."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console
from safetensors.numpy import load_file, save_file

from emo_export.checkpoint import Checkpoint
from emo_export.errors import EmoExportError
from emo_export.inspect import Inspection, inspect_path, size_text
from emo_export.inspect_view import render
from emo_export.manifest import write_manifest
from tests.exporting import export_to
from tests.hand_gguf import write_gguf
from tests.paths import GOLDEN, NANO
from tests.synth import make_checkpoint

Files = dict[str, Path]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("inspect") / "checkpoint", num_hidden_layers=1)


@pytest.fixture(scope="module")
def made(checkpoint: Path) -> Files:
    return export_to(checkpoint.parent / "out", checkpoint, gguf=["f32", "q4_0"], onnx=["int4"])


@pytest.fixture
def onnx_folder(made: Files, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(made["onnx:int4"], tmp_path / "onnx-int4"))


@pytest.fixture
def package(made: Files, tmp_path: Path) -> Path:
    folder = tmp_path / "package"
    folder.mkdir()
    shutil.copy(made["gguf:q4_0"], folder / "model-Q4_0.gguf")
    shutil.copytree(made["onnx:int4"], folder / "onnx-int4")
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
    write_manifest(folder, {"name": "synth"}, {"emo-export": "0"}, targets)
    return folder


def shown(inspection: Inspection) -> str:
    json.dumps(inspection.as_dict(), allow_nan=False)
    out = io.StringIO()
    Console(file=out, width=200).print(render(inspection))
    return out.getvalue()


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


# --- GGUF --------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["gguf:f32", "gguf:q4_0"])
def test_a_good_gguf(made: Files, target: str) -> None:
    found = inspect_path(made[target])
    reader = gguf.GGUFReader(made[target])
    assert (found.kind, found.warnings) == ("gguf", [])
    assert found.facts["file"]["architecture"] == "deepseek"
    assert found.facts["shape"]["expert_count"] == 7
    assert sum(found.facts["tensors_by_type"].values()) == len(reader.tensors)
    assert sum(found.facts["bytes_by_part"].values()) == sum(int(t.n_bytes) for t in reader.tensors)
    assert "other" not in found.facts["bytes_by_part"]
    assert found.facts["tokenizer"] == {
        "model": "gpt2",
        "pre": "dbrx",
        "bos_token_id": 491,
        "eos_token_id": 491,
        "padding_token_id": 511,
        "add_bos_token": False,
        "tokens": 512,
    }
    # 1 layer, 128 positions, 4 heads, 16 + 16 values of 2 bytes
    assert found.facts["needs"]["kv_cache_f16_bytes"] == 1 * 128 * 4 * 32 * 2
    assert "Q4_0" in shown(found) or target == "gguf:f32"


def test_a_gguf_of_another_architecture(checkpoint: Path, tmp_path: Path) -> None:
    write_gguf(checkpoint, tmp_path / "x.gguf", arch="smallthinker")
    assert "'smallthinker': not made by emo-export" in " ".join(
        inspect_path(tmp_path / "x.gguf").warnings
    )


def rewritten(
    source: Path, path: Path, keys: dict[str, Any], quantise_router: bool = False
) -> list[str]:
    """Write a GGUF anew by gguf-py with some keys changed (None: left out); its warnings."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(path, "deepseek")
    for name, entry in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        value = keys.get(name, entry.contents())
        if value is not None:
            sub = entry.types[1] if len(entry.types) > 1 else None
            writer.add_key_value(name, value, entry.types[0], sub)
    for tensor in reader.tensors:
        if quantise_router and "ffn_gate_inp" in tensor.name:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(tensor.name, gguf.quants.quantize(tensor.data, kind), raw_dtype=kind)
        else:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return inspect_path(path).warnings


def test_gguf_warnings(made: Files, tmp_path: Path) -> None:
    def warnings(**keys: Any) -> str:
        names = {name.replace("__", "."): value for name, value in keys.items()}
        return " ".join(rewritten(made["gguf:f32"], tmp_path / "x.gguf", names))

    assert warnings() == ""
    assert "add_bos_token is true" in warnings(tokenizer__ggml__add_bos_token=True)
    assert "eos_token_id" in warnings(tokenizer__ggml__eos_token_id=None)
    assert "tokenizer.ggml.pre" in warnings(tokenizer__ggml__pre=None)
    assert "no tokenizer" in warnings(tokenizer__ggml__model="none")
    assert "block_count is 5" in warnings(deepseek__block_count=5)
    assert "expert_count is 9" in warnings(deepseek__expert_count=9)
    assert "512 tokens, vocab_size is 600" in warnings(deepseek__vocab_size=600)


def test_a_quantised_router_is_told(made: Files, tmp_path: Path) -> None:
    said = rewritten(made["gguf:f32"], tmp_path / "x.gguf", {}, quantise_router=True)
    assert any("router blk.0.ffn_gate_inp.weight is quantised (Q8_0)" in line for line in said)


def test_bytes_behind_a_gguf_are_told(made: Files, tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(made["gguf:f32"].read_bytes() + bytes(10_000))
    assert "behind the last tensor" in " ".join(inspect_path(tmp_path / "x.gguf").warnings)


def test_hostile_text_of_a_file_stays_text(made: Files, tmp_path: Path) -> None:
    rewritten(made["gguf:f32"], tmp_path / "x.gguf", {"general.name": "[red]x[/red]\x1b[2J"})
    text = shown(inspect_path(tmp_path / "x.gguf"))
    assert "[red]x[/red]" in text
    assert "\x1b" not in text


@settings(max_examples=100, deadline=1000, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_gguf_with_flipped_bytes_is_told_or_refused(
    made: Files, tmp_path: Path, data: st.DataObject
) -> None:
    raw = bytearray(made["gguf:q4_0"].read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(24, 1400))] = data.draw(st.integers(0, 255))
    (tmp_path / "x.gguf").write_bytes(raw)
    try:
        shown(inspect_path(tmp_path / "x.gguf"))
    except EmoExportError as error:
        assert str(tmp_path) in str(error)


# --- ONNX --------------------------------------------------------------------------------------


def test_a_good_onnx_folder(made: Files) -> None:
    folder = made["onnx:int4"]
    for found in (inspect_path(folder), inspect_path(folder / "model.onnx")):
        assert (found.kind, found.warnings) == ("onnx", [])
        assert found.facts["graph"]["kind"] == "qmoe"
        assert found.facts["graph"]["type"] == "int4"
        assert found.facts["graph"]["operators"]["com.microsoft.QMoE"] == 1
        assert found.facts["shape"]["context"] == 128
        assert found.facts["needs"]["onnxruntime"] == "1.31"
        data = (folder / "model.onnx.data").stat().st_size
        assert found.facts["bytes"]["model.onnx.data"] == data
        parts = found.facts["bytes_by_part"]
        assert parts["expert"] > parts["shared_expert"] > parts["router"] > 0
        assert parts["other"] < 1000 < sum(parts.values()) <= data + 1000
        assert "com.microsoft.QMoE 1" in shown(found)


def test_tied_bytes_count_once(tmp_path: Path) -> None:
    tied = make_checkpoint(tmp_path / "tied", num_hidden_layers=1, tie_word_embeddings=True)
    found = inspect_path(export_to(tmp_path / "out", tied, onnx=["f32"])["onnx:f32"])
    assert found.warnings == []
    assert found.facts["bytes_by_part"]["head"] == 512 * 64 * 4
    assert "embed" not in found.facts["bytes_by_part"]


def cut(folder: Path) -> None:
    path = folder / "model.onnx.data"
    path.write_bytes(path.read_bytes()[:-1])


def lengthen(folder: Path) -> None:
    with (folder / "model.onnx.data").open("ab") as file:
        file.write(b"x")


def link(folder: Path) -> None:
    (folder / "model.onnx.data").rename(folder / "elsewhere")
    (folder / "model.onnx.data").symlink_to(folder / "elsewhere")


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated data": (cut, "is truncated"),
    "oversized data": (lengthen, "1 bytes more"),
    "no data": (lambda f: (f / "model.onnx.data").unlink(), "is missing"),
    "link": (link, "is a link"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "tokenizer.json"),
    "no config": (lambda f: (f / "config.json").unlink(), "config.json"),
    "no requirements": (lambda f: (f / "emo_export.json").unlink(), "not made by emo-export"),
    "config": (lambda f: (f / "config.json").write_text("[1"), "is not JSON"),
    "requirements": (lambda f: (f / "emo_export.json").write_text("[1]"), "expected an object"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_onnx_warnings(onnx_folder: Path, name: str) -> None:
    damage, reason = DAMAGE[name]
    damage(onnx_folder)
    found = inspect_path(onnx_folder)
    assert len(found.warnings) == 1
    assert reason in found.warnings[0]
    shown(found)


def test_external_data_outside_the_folder_is_not_looked_at(onnx_folder: Path) -> None:
    raw = (onnx_folder / "model.onnx").read_bytes()
    (onnx_folder / "model.onnx").write_bytes(raw.replace(b"model.onnx.data", b"../../etc/group"))
    warnings = inspect_path(onnx_folder).warnings
    assert len(warnings) == 1 and "lies outside" in warnings[0]


def test_a_wrong_length_is_told(onnx_folder: Path) -> None:
    raw = (onnx_folder / "model.onnx").read_bytes()
    size = str(512 * 64).encode()  # of head.weight at 8 bits
    assert size in raw
    (onnx_folder / "model.onnx").write_bytes(raw.replace(size, b"32767"))
    assert "needs 32768 bytes, its entry says 32767" in " ".join(inspect_path(onnx_folder).warnings)


def test_a_damaged_graph_is_an_error(onnx_folder: Path) -> None:
    (onnx_folder / "model.onnx").write_bytes(b"\xff" * 100)
    with pytest.raises(EmoExportError, match=r"model\.onnx"):
        inspect_path(onnx_folder)


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
