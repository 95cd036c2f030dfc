"""Which graph of llama.cpp a model gets, how its experts lie there, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize
from hypothesis import given
from hypothesis import strategies as st

from emo_export.converters.gguf.formats import GGML_FORMATS
from emo_export.converters.gguf.graph import FORCE, HIDE, Graph, choose_arch, graph_of
from emo_export.converters.gguf.layout import Layout
from emo_export.converters.gguf.scaled import fit_to_graph, scaled
from emo_export.converters.gguf.scheme import gguf_scheme
from emo_export.converters.gguf.writer import GgufWriter
from emo_export.converters.onnx.scheme import onnx_scheme
from emo_export.errors import EmoExportError
from emo_export.model.config import EmoConfig
from emo_export.model.names import Role, Slot, slots
from emo_export.model.recipes import Part
from emo_export.spec import ONNX, Spec
from tests.kit.synth import CONFIGS, make_config

GLM4MOE = {
    "no_shared_norm_topk": "norm_topk_prob",
    "always_active": "always_active_experts",
    "dense_middle": "dense layers that do not lead",
    "no_shared_counts": r"routed expert counts that differ between layers \[2, 4, 8\]",
    "shared_counts": r"routed expert counts that differ between layers \[4, 8\]",
    "norm_topk_counts": r"routed expert counts that differ .* \[4, 12\]; norm_topk_prob",
    "always_active_counts": r"always_active_experts; routed expert counts .* \[3, 9\]",
    "dense_middle_narrow": "dense layers that do not lead",
    "dense_middle_wide": r"dense layers that do not lead; .* \[4, 8\]",
    "head_dim": "heads of total width 96 beside hidden_size 64",
}
"""Models that only `glm4moe` can express, and what `deepseek` lacks."""

REFUSED = {
    "two_shared": "num_shared_experts above 1",
    # Layer 0 has all 8 experts in the softmax, layer 1 the 7 that are not shared.
    "always_active_per_layer": r"routed expert counts that do not divide the largest \[7, 8\]",
    "dense_first_bias": "dense_mlp_bias",
    "per_layer_counts": r"routed expert counts that do not divide the largest \[3, 7\]",
    "per_layer_odd_counts": r"num_shared_experts above 1; routed expert counts that do not divide",
    "attention_bias": "attention_bias",
    "rope_llama3": "rope_scaling llama3",
}
"""Models that neither can express, and why."""

NO_SHARED = {"num_shared_experts": 0}


def config_of(**overrides: Any) -> EmoConfig:
    return EmoConfig.from_dict(make_config(**overrides))


def graph(arch: str = "glm4moe", **overrides: Any) -> Graph:
    return graph_of(config_of(**overrides), arch)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_first_graph_that_is_exact_is_chosen(name: str) -> None:
    config = config_of(**CONFIGS[name])
    if name in REFUSED:
        say = rf"^gguf: llama\.cpp's deepseek and glm4moe graphs can't express {REFUSED[name]}"
        with pytest.raises(EmoExportError, match=rf"{say}.*; export to ONNX .*onnx:int4\)$"):
            choose_arch(config)
    else:
        assert choose_arch(config) == ("glm4moe" if name in GLM4MOE else "deepseek")
        assert choose_arch(config, "glm4moe") == "glm4moe"


@pytest.mark.parametrize("name", GLM4MOE)
def test_a_forced_graph_that_cannot_is_refused_naming_the_other(name: str) -> None:
    say = rf"^gguf: llama\.cpp's deepseek graph can't express {GLM4MOE[name]}; use --arch glm4moe$"
    with pytest.raises(EmoExportError, match=say):
        choose_arch(config_of(**CONFIGS[name]), "deepseek")


@pytest.mark.parametrize("arch", ["deepseek", "glm4moe"])
@pytest.mark.parametrize("name", REFUSED)
def test_a_forced_graph_where_neither_can_names_onnx(name: str, arch: str) -> None:
    with pytest.raises(EmoExportError, match=rf"{arch} graph can't express .*--to onnx:int4"):
        choose_arch(config_of(**CONFIGS[name]), arch)


def test_what_does_not_fit_any_llama_cpp_is_refused() -> None:
    with pytest.raises(EmoExportError, match="more than 512 experts"):
        choose_arch(config_of(num_experts=514))  # 513 of them routed
    assert choose_arch(config_of(num_experts=513)) == "deepseek"
    with pytest.raises(EmoExportError, match="more than 512 layers"):
        choose_arch(config_of(num_hidden_layers=513))
    with pytest.raises(EmoExportError, match="'llama' is not known; choose deepseek or glm4moe"):
        choose_arch(config_of(), "llama")


def test_no_command_is_named_where_none_works() -> None:
    config = config_of(num_shared_experts=2, num_experts_per_tok=2)
    with pytest.raises(EmoExportError, match=r"num_shared_experts above 1; ONNX can't either"):
        choose_arch(config)
    with pytest.raises(EmoExportError, match="no routed expert"):
        onnx_scheme(Spec(ONNX, "int4"), config)


def test_fewer_experts_per_token_need_an_empty_place() -> None:
    # 8 of 8 places are experts in layer 1, which takes one fewer than layer 0.
    uneven = {"num_experts_per_layer": [8, 9], "num_shared_experts_per_layer": [0, 1]}
    with pytest.raises(EmoExportError, match=r"routed experts per token that differ .* \[2, 3\]"):
        choose_arch(config_of(**uneven))
    found = graph(num_experts_per_layer=[8, 5], num_shared_experts_per_layer=[0, 1])
    assert (found.experts, found.used) == (8, 3)
    assert found.stacks[1] is not None
    assert found.stacks[1].bias == (0, 0, 0, 0, FORCE, HIDE, HIDE, HIDE)
    assert found.stacks[1].experts == (0, 1, 2, 3, -1, -1, -1, -1)
    assert found.stacks[1].router == (0, 1, 2, 3, 0, 1, 2, 3)
    assert (found.stacks[1].shared, found.stacks[1].factor) == (4, 2)


def test_always_active_experts_are_forced() -> None:
    found = graph(**CONFIGS["always_active_counts"])
    assert (found.experts, found.used, found.shared, found.lead) == (9, 2, 1, 0)
    first, second = found.stacks
    assert first is not None and second is not None
    assert first.bias == (0, 0, FORCE, 0, 0, 0, 0, 0, 0)
    assert second.bias == (0, 0, FORCE, *[HIDE] * 6)
    assert second.router == (0, 1, 2) * 3
    assert (first.factor, second.factor) == (1, 3)
    assert first.shared == second.shared == -1


@pytest.mark.parametrize(
    ("width", "shared", "runs", "forced"),
    [(16, 1, (), 0), (32, 1, (), 0), (33, 1, (1,), 1), (96, 1, (1, 2), 2), (97, 2, (2, 3), 2)],
)
def test_dense_layers_are_cut_into_runs(
    width: int, shared: int, runs: tuple[int, ...], forced: int
) -> None:
    counts = {"num_hidden_layers": 3, "num_experts_per_layer": [8, 0, 8]}
    found = graph(**counts, dense_intermediate_size=width)  # F 32, K 2 of 7
    stack = found.stacks[1]
    assert found.shared == shared
    assert stack is not None
    assert stack.experts == (*runs, *[-1] * (7 - len(runs)))
    assert stack.bias == (FORCE,) * forced + (0,) * (7 - forced)
    assert (set(stack.router), stack.factor) == ({-1}, 7)


@given(st.data())
def test_every_row_is_filled_once(data: st.DataObject) -> None:
    """Cuts and gaps tile each tensor of the stacks, for any mix of layers that is expressible."""
    unit = data.draw(st.integers(1, 4))
    counts = data.draw(st.lists(st.sampled_from([0, unit, 2 * unit, 4 * unit]), min_size=1))
    overrides: dict[str, Any] = {
        "num_hidden_layers": len(counts),
        "num_experts_per_layer": counts,
        "num_experts_per_tok": data.draw(st.integers(1, unit)),
        "dense_intermediate_size": data.draw(st.integers(1, 200)),
        **NO_SHARED,
    }
    config = config_of(**overrides)
    scheme = fit_to_graph(gguf_scheme("f32", config), config, "glm4moe")
    layout = Layout(config, "glm4moe", scheme)
    rows = {n: np.zeros(int(np.prod(s[:-1])), int) for n, s, _ in layout.declared if "shexp" in n}
    rows |= {n: np.zeros(int(np.prod(s[:-1])), int) for n, s, _ in layout.declared if "exps" in n}
    for slot in slots(config):
        for cut in layout.cuts(slot) if layout.is_cut(slot) else ():
            assert cut.rows[0] < cut.rows[1]
            assert cut.cols[0] < cut.cols[1]
            rows[cut.tensor][cut.at : cut.at + cut.rows[1] - cut.rows[0]] += 1
    for name, start, stop in layout.gaps():
        if name in rows:
            rows[name][start:stop] += 1
    assert all((found == 1).all() for found in rows.values())


# --- formats -----------------------------------------------------------------------------------


def test_a_scheme_is_fitted_once() -> None:
    for name in CONFIGS:
        config = config_of(**CONFIGS[name])
        for arch in ("deepseek", "glm4moe"):
            try:
                choose_arch(config, arch)
            except EmoExportError:
                continue
            fitted = fit_to_graph(gguf_scheme("q4_0", config), config, arch)
            assert fit_to_graph(fitted, config, arch) == fitted
            if arch == "deepseek":
                assert fitted.formats == gguf_scheme("q4_0", config).formats


def test_a_writer_refuses_a_scheme_for_another_graph(tmp_path: Path) -> None:
    config = config_of(**CONFIGS["shared_counts"])
    settings: dict[str, Any] = {"tokenizer": None, "model_name": "x", "context": 8}
    fitted = fit_to_graph(gguf_scheme("f32", config), config, "glm4moe")
    plain = {slot: GGML_FORMATS[kind.name] for slot, kind in fitted.formats.items()}
    unfitted = replace(fitted, formats=plain)
    with pytest.raises(EmoExportError, match="was not fitted to the glm4moe graph"):
        GgufWriter(tmp_path / "x.gguf", config, unfitted, **settings)
    with pytest.raises(EmoExportError, match="use --arch glm4moe"):
        GgufWriter(tmp_path / "x.gguf", config, fitted, arch="deepseek", **settings)
    assert list(tmp_path.iterdir()) == []


def test_always_active_experts_have_the_type_of_their_stack() -> None:
    config = config_of(**CONFIGS["always_active"])
    fitted = fit_to_graph(gguf_scheme("q4_0", config), config, "glm4moe")
    for slot in slots(config):
        if slot.expert >= 0:
            assert fitted.format_of(slot).name == "q4_0"
    assert Part.SHARED_EXPERT in gguf_scheme("q4_0", config_of()).used_recipe
    assert Part.SHARED_EXPERT not in fitted.used_recipe


def test_runs_that_cut_a_block_get_a_better_type() -> None:
    overrides = CONFIGS["dense_middle"] | {"intermediate_size": 24, "dense_intermediate_size": 96}
    config, slot = config_of(**overrides), Slot(Role.DENSE_DOWN, 1)
    fitted = fit_to_graph(gguf_scheme("q8_0", config), config, "glm4moe")
    assert fitted.format_of(slot).name == "f16"
    assert fitted.fallbacks[slot.name] == ("q8_0", "f16")
    assert fitted.format_of(Slot(Role.DENSE_UP, 1)).name == "q8_0"


@pytest.mark.parametrize("name", ["f32", "f16", "q8_0", "q4_0"])
@pytest.mark.parametrize("first", [0, 64])
def test_scaled_rows_come_back(name: str, first: int) -> None:
    inner = GGML_FORMATS[name]
    kind = scaled(inner, 3.0, first)
    assert (kind.name, kind.block, kind.kind) == (inner.name, inner.block, inner.kind)
    assert kind.nbytes(5, 128) == inner.nbytes(5, 128)
    assert kind is scaled(inner, 3.0, first)
    rows = np.random.default_rng(3).standard_normal((5, 128)).astype(np.float32)
    before = rows.copy()
    packed = kind.quantize(rows)
    np.testing.assert_array_equal(rows, before)
    factors = np.where(np.arange(128) < first, np.float32(1), np.float32(3))
    stored = inner.quantize(rows * factors)
    np.testing.assert_array_equal(packed["rows"], stored["rows"])
    np.testing.assert_array_equal(kind.dequantize(packed), inner.dequantize(stored) / factors)


@pytest.mark.parametrize("name", GGML_FORMATS)
def test_zero_bytes_are_zeros_in_every_type(name: str) -> None:
    kind = GGML_FORMATS[name]
    empty = np.zeros((2, kind.nbytes(1, 512)), np.uint8)
    assert not kind.dequantize({"rows": empty}).any()
    assert not dequantize(empty, GGMLQuantizationType(kind.kind)).any()
    assert kind.kind in GGML_QUANT_SIZES
