"""Recipes: which format every matrix gets, what falls back, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from emo_export.converters.gguf.scheme import gguf_scheme
from emo_export.converters.onnx.scheme import onnx_scheme
from emo_export.errors import EmoExportError
from emo_export.model.config import EmoConfig
from emo_export.model.names import Role, shape_of, slots
from emo_export.model.recipes import Part
from emo_export.model.scheme import QuantScheme, part_of
from emo_export.spec import GGUF, ONNX, Spec
from tests.kit.synth import CONFIGS, make_config

EXPERT_ROLES = (Role.GATE, Role.UP, Role.DOWN)
# (format of the routed experts, of every other matrix); routers and vectors are always f32.
EXPECTED = {
    "gguf:f32": ("f32", "f32"),
    "gguf:f16": ("f16", "f16"),
    "gguf:bf16": ("bf16", "bf16"),
    "gguf:q8_0": ("q8_0", "q8_0"),
    "gguf:q4_0": ("q4_0", "q8_0"),
    "onnx:f32": ("f32", "f32"),
    "onnx:int8": ("int8b32", "int8b32"),
    "onnx:int4": ("int4b32", "int8b32"),
}


def config_of(**overrides: Any) -> EmoConfig:
    return EmoConfig.from_dict(make_config(**overrides))


def scheme(target: str, config: EmoConfig) -> QuantScheme:
    spec = Spec.parse(target)
    if spec.family == GGUF:
        return gguf_scheme(spec.type, config)
    return onnx_scheme(spec, config, block=32)


@pytest.mark.parametrize("target", EXPECTED)
def test_every_slot_has_the_format_of_the_recipe(target: str) -> None:
    config = config_of(**CONFIGS["dense_first"])
    found = scheme(target, config)
    expert, rest = EXPECTED[target]
    assert str(found.spec) == target and not found.fallbacks
    for slot in slots(config):
        name = found.format_of(slot).name
        if slot.role == Role.ROUTER or "norm" in slot.role.value:
            assert name == "f32", slot
        elif slot.role in EXPERT_ROLES and slot.expert < 7:  # the last of 8 is shared
            assert name == expert, slot
        else:
            assert name == rest, slot
    assert set(found.formats) == set(slots(config))


@pytest.mark.parametrize("target", EXPECTED)
def test_routers_and_vectors_are_never_quantised(target: str) -> None:
    expressible = 0
    for overrides in CONFIGS.values():
        config = config_of(**overrides)
        try:
            found = scheme(target, config)
        except EmoExportError:
            continue
        expressible += 1
        for slot in slots(config):
            if slot.role == Role.ROUTER or "norm" in slot.role or "bias" in slot.role:
                assert found.format_of(slot).name == "f32"
            assert shape_of(slot, config)[-1] % found.format_of(slot).block == 0
    refused = {"gguf": 7, "onnx": 0 if target == "onnx:f32" else 3}[target[:4]]
    assert expressible == len(CONFIGS) - refused


def test_experts_that_every_token_uses_are_not_routed_experts() -> None:
    shared = config_of(**CONFIGS["per_layer_odd_counts"])  # 7 of which 2, 5 of which 1
    always = config_of(**CONFIGS["always_active"])  # 1 and 5 of 8
    for config, forced in ((shared, {0: {5, 6}, 1: {4}}), (always, {0: {1, 5}, 1: {1, 5}})):
        for slot in slots(config):
            if slot.expert >= 0:
                want = Part.EXPERT_DOWN if slot.role == Role.DOWN else Part.EXPERT
                if slot.expert in forced[slot.layer]:
                    want = Part.SHARED_EXPERT
                assert part_of(slot, config) == want, slot


def test_a_row_that_does_not_fit_falls_back_by_name() -> None:
    config = config_of(**CONFIGS["odd_36_32"])
    found = gguf_scheme("q4_0", config)
    gate = "model.layers.1.mlp.experts.3.gate_proj.weight"
    assert found.fallbacks[gate] == ("q4_0", "f16")
    assert found.fallbacks["lm_head.weight"] == ("q8_0", "f16")
    # Rows of 32 fit: nothing is said of them, and nothing is lost.
    for slot in slots(config):
        fits = shape_of(slot, config)[-1] % 32 == 0
        plain = slot.role == Role.ROUTER or "norm" in slot.role
        assert (slot.name in found.fallbacks) == (not fits and not plain)
        if slot.role == Role.DOWN:
            assert found.format_of(slot).name == ("q4_0" if slot.expert < 7 else "q8_0")


def test_qmoe_has_one_block_for_all_routed_experts() -> None:
    config = config_of(hidden_size=64, intermediate_size=48)
    found = onnx_scheme(Spec(ONNX, "int4"), config, block=32)
    for slot in slots(config):
        name = found.format_of(slot).name
        if slot.role in EXPERT_ROLES and slot.expert < 7:
            assert name == "int4b16"
            assert found.fallbacks[slot.name] == ("int4b32", "int4b16")
        elif slot.role == Role.DOWN:
            assert name == "int8b16"
            assert found.fallbacks[slot.name] == ("int8b32", "int8b16")
        else:
            assert name == ("f32" if slot.role == Role.ROUTER or "norm" in slot.role else "int8b32")
            assert slot.name not in found.fallbacks


@pytest.mark.parametrize(
    ("target", "overrides", "message"),
    [
        (
            "onnx:int8",
            CONFIGS["odd_36_32"],
            r"model\.embed_tokens\.weight: rows of 36 fit no .*f32",
        ),
        ("onnx:int4", CONFIGS["odd_48_20"], r"model\.layers\.0\.mlp\.experts\.0\..*fit no block"),
        (
            "onnx:int8",
            {"num_experts_per_layer": [0, 8], "dense_intermediate_size": 40},
            r"model\.layers\.0\.mlp\.down_proj\.weight: rows of 40 fit no block of int8b32",
        ),
        ("onnx:q4_0", {}, r"onnx:q4_0 is not a known type; choose one of f32, int8, int4, int2"),
        ("onnx:int2@if", {}, r"^onnx:int2@if: the if graph has f32, int8, int4.*as onnx:int2@qmoe"),
        (
            "onnx:int2",
            {"intermediate_size": 192},
            r"2 bits need a hidden size of a multiple of 128 and experts as wide as one of 64, "
            "here they are 64 and 192",
        ),
        ("onnx:int2", CONFIGS["odd_48_20"], r"model\.layers\.0\.mlp\.experts\.0\..*fit no block"),
        ("gguf:int4", {}, r"gguf:int4 is not a known type; choose one of f32, f16, bf16"),
        ("onnx:f32", {"num_experts_per_tok": 1}, "no routed expert"),
    ],
)
def test_what_cannot_be_done_is_refused(
    target: str, overrides: dict[str, Any], message: str
) -> None:
    with pytest.raises(EmoExportError, match=message):
        scheme(target, config_of(**overrides))
