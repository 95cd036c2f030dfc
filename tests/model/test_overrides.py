"""--tensor-type: what an entry says, which targets it goes to, and what is refused."""

from __future__ import annotations

import pytest

from emo_export.converters.gguf.formats import GGML_FORMATS
from emo_export.converters.gguf.scheme import gguf_scheme
from emo_export.converters.onnx.scheme import OVERRIDING, onnx_scheme
from emo_export.errors import EmoExportError
from emo_export.model.config import EmoConfig
from emo_export.model.overrides import check_overrides, parse_overrides
from emo_export.model.recipes import Part
from emo_export.spec import ONNX, Spec
from tests.kit.synth import CONFIGS, make_config

TYPES = {"gguf": tuple(GGML_FORMATS), "onnx": OVERRIDING}


def test_overrides() -> None:
    assert parse_overrides((), TYPES) == {"gguf": {}, "onnx": {}}
    found = parse_overrides(("expert_down=Q5_K", "HEAD=f32", "embed=int4"), TYPES)
    assert found["gguf"] == {Part.EXPERT_DOWN: "q5_k", Part.HEAD: "f32"}
    assert found["onnx"] == {Part.HEAD: "f32", Part.EMBED: "int4"}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("expert_down", "expected ROLE=TYPE"),
        ("expert_down=", "expected ROLE=TYPE"),
        ("=q4_k", "expected ROLE=TYPE"),
        ("", "expected ROLE=TYPE"),
        ("expert_down=q4_k_m", "TYPE one of f32, f16"),
        ("expert_down=q4_k=q5_k", "expected ROLE=TYPE"),
        ("experts=q4_k", "ROLE one of embed, attention, expert, expert_down, shared_expert"),
        ("router=q8_0", "router stays f32"),
        ("vector=f16", "vector stays f32"),
    ],
)
def test_overrides_that_are_refused(given: str, said: str) -> None:
    with pytest.raises(EmoExportError, match=f"--tensor-type {given}.*{said}"):
        parse_overrides((given,), {"gguf": GGML_FORMATS})
    with pytest.raises(EmoExportError, match="head is there twice"):
        parse_overrides(("head=q8_0", "Head=q6_k"), TYPES)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("mha", Part.DENSE),
        ("tied", Part.HEAD),
        ("no_shared", Part.SHARED_EXPERT),
        ("always_active", Part.SHARED_EXPERT),  # they stand among the routed experts
    ],
)
def test_a_type_for_what_the_model_has_not_is_refused(name: str, part: Part) -> None:
    scheme = gguf_scheme("q4_0", EmoConfig.from_dict(make_config(**CONFIGS[name])))
    with pytest.raises(EmoExportError, match=f"--tensor-type {part.value}: this model.* has no"):
        check_overrides([part], scheme, "GGUF")
    check_overrides([p for p in Part if p in scheme.used_recipe], scheme, "GGUF")


def test_a_type_for_experts_where_every_layer_is_dense() -> None:
    dense = {"num_experts_per_layer": [0, 0], "dense_intermediate_size": 96}
    config = EmoConfig.from_dict(make_config(**dense))
    scheme = onnx_scheme(Spec(ONNX, "int4"), config, {Part.EXPERT: "int8"})
    with pytest.raises(EmoExportError, match=r"--tensor-type expert: .* no such part"):
        check_overrides([Part.EXPERT], scheme, "ONNX")


def test_a_type_that_no_target_knows_is_refused_with_what_they_know() -> None:
    with pytest.raises(EmoExportError, match=r"head=q8_0: .* f32, int8, int4, .* \(onnx\)$"):
        parse_overrides(("head=q8_0",), {"onnx": OVERRIDING})
    with pytest.raises(EmoExportError, match=r"\(gguf\); or f32, int8, .* \(onnx\)$"):
        parse_overrides(("head=q9_9",), TYPES)
