"""GGUF files of architecture `glm4moe`, and what is odd in either: llama.cpp against the oracle."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader

from emo_export.converters.gguf.graph import FORCE, HIDE
from emo_export.converters.gguf.scaled import fit_to_graph
from emo_export.converters.gguf.scheme import gguf_scheme
from emo_export.converters.gguf.twin import write_float_twin
from emo_export.converters.gguf.writer import GgufWriter
from emo_export.model.checkpoint import Checkpoint
from emo_export.model.product import Product
from emo_export.reference.passes import logits
from emo_export.runtimes.llama.model import LlamaCpp
from tests.converters.gguf.test_gguf_graph import GLM4MOE
from tests.kit.exporting import (
    TIGHT,
    Array,
    Case,
    assert_same,
    case,
    case_of,
    dequantised_source,
    prefill,
    steps,
    write_all,
)
from tests.kit.hand_gguf import read_weights
from tests.kit.synth import CONFIGS
from tests.kit.tiers import slow_beyond

# Corners that the ONNX writer need not share: name -> overrides.
CORNERS: dict[str, dict[str, Any]] = {
    "idle_place": {"num_experts_per_layer": [8, 5], "num_shared_experts_per_layer": [0, 1]},
    "nothing_routed": {"num_experts_per_tok": 1},
    "one_expert": {"num_experts": 1, "num_experts_per_tok": 1},
    "dense_only": {"num_experts_per_layer": [0, 0], "dense_intermediate_size": 40},
    "all_forced": {"num_shared_experts": 0, "always_active_experts": [2, 0, 1], "num_experts": 5},
    "dense_norm_topk": {
        "num_shared_experts": 0,
        "norm_topk_prob": True,
        "num_hidden_layers": 3,
        "num_experts_per_layer": [8, 0, 8],
        "dense_intermediate_size": 96,
    },
    "cut_blocks": {
        "num_hidden_layers": 3,
        "num_experts_per_layer": [8, 0, 8],
        "intermediate_size": 24,
        "dense_intermediate_size": 96,
    },
    # llama.cpp names a size by the number of layers; nothing else may hang on it.
    "layers_46": {"num_hidden_layers": 46, "hidden_size": 32, "vocab_size": 512},
}
BOTH = ["mha", "gqa", "odd_48_20", "no_shared", "k_equals_e", "dense_first", "tied"]
BOTH += ["rope_linear", "rope_dynamic"]
QUANTISED = ["always_active", "always_active_counts", "shared_counts", "norm_topk_counts"]
QUANTISED += ["dense_middle", "dense_middle_narrow", "dense_middle_wide", "cut_blocks"]


@functools.cache
def made(name: str) -> Case:
    return case(name) if name in CONFIGS else case_of(name, CORNERS[name])


def export(folder: Path, type_name: str, path: Path, arch: str = "glm4moe") -> Path:
    checkpoint = Checkpoint.open(folder)
    config = checkpoint.config
    scheme = fit_to_graph(gguf_scheme(type_name, config), config, arch)
    settings: dict[str, Any] = {"tokenizer": None, "model_name": "x", "context": 64}
    writer = GgufWriter(path, config, scheme, arch=arch, **settings)
    write_all(Product.whole(checkpoint), writer)
    return path


def check(path: Path, want: Array, ids: Array) -> None:
    model = LlamaCpp(path, threads=1, parity=True)
    for found in (prefill(model, ids), steps(model, ids)):
        assert_same(want, found, TIGHT)
    model.close()


@pytest.mark.parametrize("name", slow_beyond([*GLM4MOE, *CORNERS], [*GLM4MOE, *CORNERS, *BOTH]))
def test_glm4moe_is_the_oracle(name: str, tmp_path: Path) -> None:
    check(export(made(name).folder, "f32", tmp_path / "x.gguf"), made(name).logits, made(name).ids)


@pytest.mark.parametrize("name", ["nothing_routed", "one_expert", "dense_only"])
def test_deepseek_is_the_oracle_where_nothing_is_routed(name: str, tmp_path: Path) -> None:
    path = export(made(name).folder, "f32", tmp_path / "x.gguf", "deepseek")
    check(path, made(name).logits, made(name).ids)


@pytest.mark.parametrize("type_name", ["q8_0", "q4_0"])
@pytest.mark.parametrize("name", QUANTISED)
def test_quantised_files_are_the_dequantised_reference(
    name: str, type_name: str, tmp_path: Path
) -> None:
    checkpoint = Checkpoint.open(made(name).folder)
    config = checkpoint.config
    scheme = fit_to_graph(gguf_scheme(type_name, config), config, "glm4moe")
    source = dequantised_source(Product.whole(checkpoint), scheme)
    want = np.stack(logits(config, source, list(made(name).ids)))
    path = export(made(name).folder, type_name, tmp_path / "x.gguf")
    write_float_twin(path, tmp_path / "twin.gguf")
    check(tmp_path / "twin.gguf", want, made(name).ids)
    LlamaCpp(path, threads=1, parity=True).close()


def test_keys(tmp_path: Path) -> None:
    path = export(case("dense_middle_wide").folder, "f32", tmp_path / "x.gguf")
    fields = GGUFReader(path).fields
    want: dict[str, Any] = {
        "block_count": 4,
        "context_length": 64,
        "embedding_length": 64,
        "feed_forward_length": 352,
        "attention.head_count": 4,
        "attention.head_count_kv": 4,
        "attention.key_length": 16,
        "attention.value_length": 16,
        "attention.layer_norm_rms_epsilon": pytest.approx(1e-6),
        "rope.freq_base": 500000.0,
        "rope.dimension_count": 16,
        "expert_count": 8,
        "expert_used_count": 3,
        "expert_feed_forward_length": 64,
        "expert_shared_count": 3,  # 352 = 5.5 * 64, of which 3 * 64 are forced experts
        "expert_weights_scale": 1.0,
        "expert_weights_norm": False,
        "expert_gating_func": 1,
        "leading_dense_block_count": 1,
        "vocab_size": 512,
    }
    assert fields["general.architecture"].contents() == "glm4moe"
    assert {k[8:]: f.contents() for k, f in fields.items() if k.startswith("glm4moe.")} == want


def test_tensors_of_uneven_layers_with_an_always_active_expert(tmp_path: Path) -> None:
    folder = case("always_active_counts").folder
    weights = read_weights(folder)
    reader = GGUFReader(export(folder, "f32", tmp_path / "x.gguf"))
    found = {t.name: np.asarray(t.data) for t in reader.tensors}
    part = {n[15:-7]: w for n, w in weights.items() if n.startswith("model.layers.1.")}
    same = {
        "attn_q": part["self_attn.q_proj"],  # not permuted
        "attn_k": part["self_attn.k_proj"],
        "attn_norm": part["pre_attention_layernorm"],
        "post_attention_norm": part["pre_feedforward_layernorm"],
        "ffn_gate_inp": np.tile(part["mlp.gate"], (3, 1)),
    }
    for name in ("gate", "up", "down"):
        three = np.stack([part[f"mlp.experts.{e}.{name}_proj"] for e in range(3)])
        if name == "down":
            three = three * np.float32(3)
        same[f"ffn_{name}_exps"] = np.concatenate([three, np.zeros((6, *three.shape[1:]))])
        same[f"ffn_{name}_shexp"] = np.zeros(three.shape[1:])
    for name, want in same.items():
        np.testing.assert_array_equal(found[f"blk.1.{name}.weight"], want, err_msg=name)
    bias = np.array([0, 0, FORCE, *[HIDE] * 6], np.float32)
    np.testing.assert_array_equal(found["blk.1.exp_probs_b.bias"].reshape(-1), bias)
    assert "blk.1.ffn_norm.weight" not in found


def test_tensors_of_a_dense_layer_that_does_not_lead(tmp_path: Path) -> None:
    folder = case("dense_middle").folder  # F 32, W 80: runs of 32, 32 and 16
    weights = read_weights(folder)
    gate, down = (weights[f"model.layers.1.mlp.{n}_proj.weight"] for n in ("gate", "down"))
    reader = GGUFReader(export(folder, "f32", tmp_path / "x.gguf"))
    found = {t.name: np.asarray(t.data) for t in reader.tensors}
    np.testing.assert_array_equal(found["blk.1.ffn_gate_shexp.weight"], gate[:32])
    np.testing.assert_array_equal(found["blk.1.ffn_down_shexp.weight"], down[:, :32])
    stack = np.zeros((7, 32, 64), np.float32)
    stack[0], stack[1, :16] = gate[32:64], gate[64:]
    np.testing.assert_array_equal(found["blk.1.ffn_gate_exps.weight"], stack)
    stack = np.zeros((7, 64, 32), np.float32)
    stack[0], stack[1, :, :16] = down[:, 32:64] * 7, down[:, 64:] * 7
    np.testing.assert_array_equal(found["blk.1.ffn_down_exps.weight"], stack)
    assert not found["blk.1.ffn_gate_inp.weight"].any()
