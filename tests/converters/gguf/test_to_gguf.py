"""GGUF files: what gguf-py reads back, an independently built peer, and llama.cpp itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type
from gguf import GGUFReader, LlamaFileType
from gguf.quants import dequantize, quantize

from emo_export.converters.gguf.scheme import gguf_scheme
from emo_export.converters.gguf.writer import GgufWriter
from emo_export.errors import EmoExportError
from emo_export.model.checkpoint import Checkpoint
from emo_export.model.names import Role, Slot
from emo_export.runtimes.llama.model import LlamaCpp
from tests.converters.gguf.test_gguf_graph import GLM4MOE, REFUSED
from tests.kit.exporting import (
    TIGHT,
    Array,
    assert_same,
    case,
    dequantised_logits,
    export_to,
    exported,
    kl,
    prefill,
    steps,
)
from tests.kit.hand_gguf import read_weights, write_gguf
from tests.kit.paths import GOLDEN, NANO
from tests.kit.synth import CONFIGS, make_checkpoint
from tests.kit.tiers import slow_beyond

# Types of (routed experts, other matrices), and llama.cpp's number for the whole.
TYPES = {
    "f32": (Type.F32, Type.F32, LlamaFileType.ALL_F32),
    "f16": (Type.F16, Type.F16, LlamaFileType.MOSTLY_F16),
    "bf16": (Type.BF16, Type.BF16, LlamaFileType.MOSTLY_BF16),
    "q8_0": (Type.Q8_0, Type.Q8_0, LlamaFileType.MOSTLY_Q8_0),
    "q4_0": (Type.Q4_0, Type.Q8_0, LlamaFileType.MOSTLY_Q4_0),
}
# llama.cpp rounds activations beside all types but f32: what that alone may cost, in mean KL.
SHIPPED = {"f32": TIGHT, "f16": 1e-6, "bf16": 5e-5, "q8_0": 2e-3, "q4_0": 5e-3}

EXPRESSIBLE = [name for name in CONFIGS if name not in {*REFUSED, *GLM4MOE}]


def pairs(matrix: Array, head_size: int) -> Array:
    """Rows of q or k as llama.cpp rotates them: row 2i pairs with 2i+1, not i with i + size/2."""
    out = np.full_like(matrix, np.nan)
    for row in range(len(matrix)):
        head, place = divmod(row, head_size)
        half, index = divmod(place, head_size // 2)
        out[head * head_size + 2 * index + half] = matrix[row]
    return out


def mapped(folder: Path) -> dict[str, Array]:
    """GGUF name -> float32 values, from the checkpoint's own tensors (docs/emo.md)."""
    config, weights = json.loads((folder / "config.json").read_text("utf-8")), read_weights(folder)
    size = config["hidden_size"] // config["num_attention_heads"]
    embed = weights["model.embed_tokens.weight"]
    out = {"token_embd": embed, "output": weights.get("lm_head.weight", embed)}
    out["output_norm"] = weights["model.norm.weight"]
    for layer in range(config["num_hidden_layers"]):
        prefix, blk = f"model.layers.{layer}.", f"blk.{layer}."
        part = {n[len(prefix) : -7]: w for n, w in weights.items() if n.startswith(prefix)}
        out[f"{blk}attn_norm"] = part["pre_attention_layernorm"]
        out[f"{blk}ffn_norm"] = part["pre_feedforward_layernorm"]
        out[f"{blk}attn_q"] = pairs(part["self_attn.q_proj"], size)
        out[f"{blk}attn_k"] = pairs(part["self_attn.k_proj"], size)
        out[f"{blk}attn_v"] = part["self_attn.v_proj"]
        out[f"{blk}attn_output"] = part["self_attn.o_proj"]
        if "mlp.gate" in part:
            out |= {blk + n: w for n, w in experts(part, config["num_shared_experts"]).items()}
        else:
            out |= {f"{blk}ffn_{p}": part[f"mlp.{p}_proj"] for p in ("gate", "up", "down")}
    return {f"{name}.weight": value for name, value in out.items()}


def experts(part: dict[str, Array], shared: int) -> dict[str, Array]:
    routed = len(part["mlp.gate"]) - shared
    out = {"ffn_gate_inp": part["mlp.gate"][:routed]}
    for name in ("gate", "up", "down"):
        matrices = [part[f"mlp.experts.{e}.{name}_proj"] for e in range(routed + shared)]
        out[f"ffn_{name}_exps"] = np.stack(matrices[:routed])
        out[f"ffn_{name}_shexp"] = matrices[-1] if shared else np.zeros_like(matrices[0])
    return out


def kind_of(name: str, shape: tuple[int, ...], type_name: str) -> Type:
    """The type that a tensor of the recipe has; rows that fit no block of 32 become f16."""
    if len(shape) == 1 or "gate_inp" in name:
        return Type.F32
    wanted = TYPES[type_name][0 if "_exps" in name else 1]
    quantised = wanted in (Type.Q4_0, Type.Q8_0)
    return Type.F16 if quantised and shape[-1] % 32 else wanted


def check_tensors(path: Path, folder: Path, type_name: str) -> None:
    expected, reader = mapped(folder), GGUFReader(path)
    assert {t.name for t in reader.tensors} == set(expected)
    for tensor in reader.tensors:
        want = expected[tensor.name]
        assert tensor.shape.tolist() == list(reversed(want.shape)), tensor.name
        # The shared expert that only fills a gap in the graph is stored as the others are.
        made_up = tensor.name.replace("_shexp", "_exps") if not want.any() else tensor.name
        kind = kind_of(made_up, want.shape, type_name)
        assert tensor.tensor_type == kind, tensor.name
        if kind != Type.F32:
            want = dequantize(quantize(want, kind), kind)
        found = dequantize(tensor.data, tensor.tensor_type)
        np.testing.assert_array_equal(found, want.astype(np.float32), err_msg=tensor.name)
    ends = [t.data_offset + t.n_bytes for t in reader.tensors]
    assert all(t.data_offset % 32 == 0 for t in reader.tensors)
    assert path.stat().st_size == -(-max(ends) // 32) * 32
    assert reader.fields["general.file_type"].contents() == TYPES[type_name][2]


@pytest.mark.parametrize(
    ("folder", "type_name"),
    slow_beyond(
        [(GOLDEN / "sharded", "f32"), (GOLDEN / "sharded", "q4_0")],
        [(NANO, "q4_0"), *((GOLDEN / "sharded", name) for name in TYPES)],
    ),
)
def test_the_reader_finds_the_checkpoint(folder: Path, type_name: str) -> None:
    check_tensors(exported(folder, f"gguf:{type_name}"), folder, type_name)


@pytest.mark.parametrize("type_name", ["q8_0", "q4_0"])
@pytest.mark.parametrize("name", ["no_shared", "dense_first", "tied", "mqa", "odd_36_32", "bf16"])
def test_the_reader_finds_every_kind_of_layer(name: str, type_name: str) -> None:
    folder = case(name).folder
    check_tensors(exported(folder, f"gguf:{type_name}"), folder, type_name)


@pytest.mark.parametrize("name", ["base", "pruned", "densefirst", "sharded"])
def test_a_file_built_by_other_code_is_the_same(name: str, tmp_path: Path) -> None:
    folder = GOLDEN / name
    write_gguf(folder, tmp_path / "hand.gguf")
    ours, hand = (GGUFReader(p) for p in (exported(folder, "gguf:f32"), tmp_path / "hand.gguf"))
    found = {t.name: t for t in ours.tensors}
    assert set(found) == {t.name for t in hand.tensors}
    for tensor in hand.tensors:
        np.testing.assert_array_equal(found[tensor.name].data, tensor.data, err_msg=tensor.name)
    for key, field in hand.fields.items():
        if not key.startswith("GGUF."):
            assert ours.fields[key].types == field.types, key
            assert ours.fields[key].contents() == field.contents(), key


def test_keys_are_those_of_the_documentation() -> None:
    fields = GGUFReader(exported(GOLDEN / "densefirst", "gguf:f32")).fields
    config = json.loads((GOLDEN / "densefirst" / "config.json").read_text("utf-8"))
    want: dict[str, Any] = {
        "block_count": config["num_hidden_layers"],
        "context_length": config["max_position_embeddings"],
        "embedding_length": 128,
        "feed_forward_length": config["dense_intermediate_size"],
        "attention.head_count": 4,
        "attention.head_count_kv": config["num_key_value_heads"],
        "attention.key_length": 32,
        "attention.value_length": 32,
        "attention.layer_norm_rms_epsilon": pytest.approx(1e-6),
        "rope.freq_base": 500000.0,
        "rope.dimension_count": 32,
        "expert_count": 15,
        "expert_used_count": 3,
        "expert_feed_forward_length": 64,
        "expert_shared_count": 1,
        "expert_weights_scale": 1.0,
        "leading_dense_block_count": 1,
        "vocab_size": 512,
    }
    found = {k[9:]: f.contents() for k, f in fields.items() if k.startswith("deepseek.")}
    assert found == want
    assert fields["general.architecture"].contents() == "deepseek"
    assert fields["general.name"].contents() == "test"


def test_linear_rope_is_told() -> None:
    fields = GGUFReader(exported(case("rope_linear").folder, "gguf:f32")).fields
    assert fields["deepseek.rope.scaling.type"].contents() == "linear"
    assert fields["deepseek.rope.scaling.factor"].contents() == 4.0
    plain = GGUFReader(exported(case("rope_dynamic").folder, "gguf:f32")).fields
    assert not any("rope.scaling" in key for key in plain)


@pytest.mark.slow
@pytest.mark.parametrize("type_name", TYPES)
def test_llama_cpp_runs_the_trained_model(type_name: str) -> None:
    ids = np.load(NANO / "golden.npz")["input_ids"][:3]
    want = dequantised_logits(NANO, f"gguf:{type_name}", ids)
    model = LlamaCpp(exported(NANO, f"gguf:{type_name}"), threads=1, parity=True)
    for found in (prefill(model, ids), steps(model, ids)):
        assert kl(want, found).mean() <= SHIPPED[type_name]
        assert (found.argmax(-1) == want.argmax(-1)).mean() >= 0.95
    model.close()


@pytest.mark.parametrize("name", EXPRESSIBLE)
def test_llama_cpp_is_the_oracle(name: str) -> None:
    made = case(name)
    model = LlamaCpp(exported(made.folder, "gguf:f32"), threads=1, parity=True)
    for found in (prefill(model, made.ids), steps(model, made.ids)):
        assert_same(made.logits, found, TIGHT)
    model.close()


@pytest.mark.parametrize("name", ["odd_48_20", "no_shared", "dense_first"])
def test_llama_cpp_runs_mixed_types(name: str) -> None:
    made = case(name)
    want = dequantised_logits(made.folder, "gguf:q4_0", made.ids)
    model = LlamaCpp(exported(made.folder, "gguf:q4_0"), threads=1, parity=True)
    assert kl(want, prefill(model, made.ids)).mean() <= SHIPPED["q4_0"]
    model.close()


@pytest.mark.parametrize("name", REFUSED)
def test_what_llama_cpp_cannot_compute_is_refused(name: str) -> None:
    config = Checkpoint.open(case(name).folder).config
    with pytest.raises(EmoExportError, match=rf"can't express .*{REFUSED[name]}.*onnx:int4"):
        gguf_scheme("f32", config)


def test_a_weight_too_large_for_f16_is_refused_by_name(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model")
    data = bytearray((folder / "model.safetensors").read_bytes())
    name = "model.layers.1.mlp.experts.2.up_proj.weight"
    size = int.from_bytes(data[:8], "little")
    begin = json.loads(data[8 : 8 + size])[name]["data_offsets"][0]
    start = 8 + size + begin
    data[start : start + 4] = np.float32(1e5).tobytes()
    (folder / "model.safetensors").write_bytes(data)
    with pytest.raises(EmoExportError, match=rf"model\.safetensors: tensor {name}: .*65504"):
        export_to(tmp_path / "out", folder, gguf=["f16"])


def test_a_writer_that_is_not_fed_refuses_to_close(tmp_path: Path) -> None:
    config = Checkpoint.open(case("mha").folder).config
    scheme = gguf_scheme("q4_0", config)
    settings: dict[str, Any] = {"tokenizer": None, "model_name": "x", "context": 8}
    writer = GgufWriter(tmp_path / "x.gguf", config, scheme, **settings)
    slot = Slot(Role.UP, 1, 4)
    packed = writer.format_of(slot).quantize(np.ones((32, 64), np.float32))
    with pytest.raises(EmoExportError, match="not open"):
        writer.write(slot, 0, packed)
    writer.open()
    writer.write(slot, 0, packed)
    with pytest.raises(
        EmoExportError, match=r"rows 128\.\.160 of blk\.1\.ffn_up_exps\.weight .* tw"
    ):
        writer.write(slot, 0, packed)
    with pytest.raises(EmoExportError, match=r"row 0 of token_embd\.weight was never written"):
        writer.close()
    writer.abort()
    total = sum(decl.nbytes for decl in writer.declarations())
    assert total < (tmp_path / "x.gguf").stat().st_size < total + 16384
