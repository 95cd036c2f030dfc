"""The tables of names, held against gguf-py's, and against what the layouts declare."""

from __future__ import annotations

import re

import gguf
import pytest
from gguf.constants import MODEL_TENSORS, TENSOR_NAMES

from emo_export.converters.gguf.graph import choose_arch
from emo_export.converters.gguf.layout import DENSE_ROLES
from emo_export.converters.gguf.layout import Layout as GgufLayout
from emo_export.converters.gguf.scheme import gguf_scheme
from emo_export.converters.onnx.kinds import KINDS
from emo_export.converters.onnx.layout import Layout as OnnxLayout
from emo_export.converters.onnx.scheme import onnx_scheme
from emo_export.files import onnx_names
from emo_export.files.gguf_names import GGUF_NAMES
from emo_export.files.tensor_names import Form, Held
from emo_export.model.config import EmoConfig
from emo_export.model.names import VECTORS, Role, Slot, slots
from emo_export.model.recipes import Part
from emo_export.model.scheme import part_of
from emo_export.spec import Spec
from tests.kit.synth import CONFIGS, make_config

MODELS = ("mha", "dense_middle", "always_active", "dense_first_bias", "tied")


def config_of(name: str) -> EmoConfig:
    return EmoConfig.from_dict(make_config(**CONFIGS[name]))


@pytest.mark.parametrize("name", ["mha", "dense_middle", "always_active", "tied"])
def test_gguf_both_ways(name: str) -> None:
    config = config_of(name)
    layout = GgufLayout(config, choose_arch(config), gguf_scheme("f32", config))
    arch = next(k for k, v in gguf.MODEL_ARCH_NAMES.items() if v == layout.graph.arch)
    known = {TENSOR_NAMES[tensor] for tensor in MODEL_TENSORS[arch]}
    for tensor, _, _ in layout.declared:
        held = GGUF_NAMES.held(tensor)
        assert held is not None
        assert GGUF_NAMES.name(held.roles[0], held.layer, form=held.form) == tensor
        stem = re.sub(r"\d+", "{bid}", tensor.rpartition(".")[0])
        assert stem in known or held.form == Form.GLM4MOE
    for slot in slots(config):
        names = [cut.tensor for cut in layout.cuts(slot)] if layout.is_cut(slot) else []
        for tensor in names or [layout.name_of(slot)] * (not layout.is_cut(slot)):
            held = GGUF_NAMES.held(tensor)
            assert held is not None and held.layer == slot.layer
            if slot.role in DENSE_ROLES.values() and names:  # lies where the graph has experts
                assert held.form != Form.OWN
            else:
                assert held.roles == (slot.role,)
                assert held.part == part_of(slot, config) or slot.role in DENSE_ROLES


@pytest.mark.parametrize("graph", KINDS)
@pytest.mark.parametrize("name", MODELS)
def test_onnx_both_ways(name: str, graph: str) -> None:
    config = config_of(name)
    scheme = onnx_scheme(Spec("onnx", "int8", graph), config)
    layout = OnnxLayout(KINDS[graph], config, scheme, 16)
    declared = {one.name for one in layout.data.declarations}
    assert {name for name in declared if onnx_names.held(name) is None} == set(onnx_names.ANGLES)
    for slot in slots(config):
        if slot in layout.places:
            stem = layout.places[slot].stem
        else:
            stack = layout.stacks[slot][0]
            stem = stack.fc2 if slot.role == Role.DOWN else stack.fc1
        name_of = stem if slot.role in VECTORS else f"{stem}.weight"
        held = onnx_names.held(name_of)
        assert name_of in declared and held is not None
        if config.tie_word_embeddings and slot == Slot(Role.EMBED):
            slot = Slot(Role.HEAD)  # which has the bytes of both
        assert held.part == part_of(slot, config)
        assert slot.role in held.roles and held.layer == slot.layer
        assert held.expert in (slot.expert, -1)


def test_what_only_the_name_tells() -> None:
    assert GGUF_NAMES.held("blk.12.ffn_down_exps.weight") == Held((Role.DOWN,), Form.STACK, 12)
    assert onnx_names.held("layers.3.experts.17.gate_up.scales") == Held(
        (Role.GATE, Role.UP), Form.OWN, 3, 17
    )
    bias = onnx_names.held("layers.3.qkv.bias")
    assert bias is not None and bias.part == Part.VECTOR
    assert bias.roles == (Role.Q_BIAS, Role.K_BIAS, Role.V_BIAS)


@pytest.mark.parametrize(
    "name",
    [
        "blk.x.attn_q.weight",
        "blk.01.attn_q.weight",
        "blk.1.attn_q.bias",
        "blk.1.attn_q_norm.weight",
        "blk.1.ffn_gate_up_exps.weight",
        "a.token_embd.weight",
        "rope_freqs.weight",
        "",
    ],
)
def test_names_that_no_gguf_of_ours_has(name: str) -> None:
    assert GGUF_NAMES.held(name) is None


@pytest.mark.parametrize(
    "name",
    ["cos", "ints_1.1d", "layers.0.qkv", "layers.0.qkv.zeros", "layers.0.router.bias", "head.1"],
)
def test_names_that_no_graph_of_ours_has(name: str) -> None:
    assert onnx_names.held(name) is None


def test_a_role_without_a_name_raises() -> None:
    with pytest.raises(KeyError):
        GGUF_NAMES.name(Role.Q_BIAS, 0)
    with pytest.raises(KeyError):
        GGUF_NAMES.name(Role.GATE, 0)
