"""What `inspect` says of GGUF files and ONNX folders, and what it warns about."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from emo_export.errors import EmoExportError
from emo_export.inspect.checkpoint import inspect_path
from tests.kit.exporting import export_to
from tests.kit.hand_gguf import write_gguf
from tests.kit.inspecting import lengthen, shown
from tests.kit.synth import make_checkpoint

Files = dict[str, Path]


# --- GGUF --------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["gguf:f32", "gguf:q4_0"])
def test_a_good_gguf(small_exports: Files, target: str) -> None:
    found = inspect_path(small_exports[target])
    reader = gguf.GGUFReader(small_exports[target])
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


def test_a_gguf_of_another_architecture(small: Path, tmp_path: Path) -> None:
    write_gguf(small, tmp_path / "x.gguf", arch="smallthinker")
    found = inspect_path(tmp_path / "x.gguf")
    assert found.judgement.startswith("looks like an EMO")
    assert "architecture 'smallthinker' on an EMO" in found.warnings[0]


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


def test_gguf_warnings(small_exports: Files, tmp_path: Path) -> None:
    def warnings(**keys: Any) -> str:
        names = {name.replace("__", "."): value for name, value in keys.items()}
        return " ".join(rewritten(small_exports["gguf:f32"], tmp_path / "x.gguf", names))

    assert warnings() == ""
    assert "add_bos_token is true" in warnings(tokenizer__ggml__add_bos_token=True)
    assert "eos_token_id" in warnings(tokenizer__ggml__eos_token_id=None)
    assert "tokenizer.ggml.pre" in warnings(tokenizer__ggml__pre=None)
    assert "no tokenizer" in warnings(tokenizer__ggml__model="none")
    assert "block_count is 5" in warnings(deepseek__block_count=5)
    assert "expert_count is 9" in warnings(deepseek__expert_count=9)
    assert "512 tokens, vocab_size is 600" in warnings(deepseek__vocab_size=600)


def test_a_quantised_router_is_told(small_exports: Files, tmp_path: Path) -> None:
    said = rewritten(small_exports["gguf:f32"], tmp_path / "x.gguf", {}, quantise_router=True)
    assert any("router blk.0.ffn_gate_inp.weight is quantised (Q8_0)" in line for line in said)


def test_bytes_behind_a_gguf_are_told(small_exports: Files, tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(small_exports["gguf:f32"].read_bytes() + bytes(10_000))
    assert "behind the last tensor" in " ".join(inspect_path(tmp_path / "x.gguf").warnings)


def test_hostile_text_of_a_file_stays_text(small_exports: Files, tmp_path: Path) -> None:
    rewritten(
        small_exports["gguf:f32"], tmp_path / "x.gguf", {"general.name": "[red]x[/red]\x1b[2J"}
    )
    text = shown(inspect_path(tmp_path / "x.gguf"))
    assert "[red]x[/red]" in text
    assert "\x1b" not in text


@settings(max_examples=100, deadline=1000, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_gguf_with_flipped_bytes_is_told_or_refused(
    small_exports: Files, tmp_path: Path, data: st.DataObject
) -> None:
    raw = bytearray(small_exports["gguf:q4_0"].read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(24, 1400))] = data.draw(st.integers(0, 255))
    (tmp_path / "x.gguf").write_bytes(raw)
    try:
        shown(inspect_path(tmp_path / "x.gguf"))
    except EmoExportError as error:
        assert str(tmp_path) in str(error)


# --- ONNX --------------------------------------------------------------------------------------


def test_a_good_onnx_folder(small_exports: Files) -> None:
    folder = small_exports["onnx:int4"]
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
    "no requirements": (
        lambda f: (f / "emo_export.json").unlink(),
        "not made by emo-export",
    ),
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
