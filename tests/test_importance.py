"""The importance matrix by itself, and which schemes need one."""

from __future__ import annotations

import numpy as np
import pytest

from emo_export.config import EmoConfig
from emo_export.converters.gguf_scheme import (
    check_importance,
    check_overrides,
    gguf_scheme,
    parse_overrides,
)
from emo_export.errors import EmoExportError
from emo_export.importance import ImportanceMatrix
from emo_export.names import Role, Slot
from emo_export.recipes import Part
from tests.synth import CONFIGS, make_config

Q, DOWN = Slot(Role.Q, 0), Slot(Role.DOWN, 0, 3)
WIDE = EmoConfig.from_dict(make_config(hidden_size=256, intermediate_size=256))


def matrix(sums: list[float], count: int, tokens: int = 0) -> ImportanceMatrix:
    return ImportanceMatrix("a", tokens, {Q: np.array(sums, np.float32)}, {Q: count})


@pytest.mark.parametrize(
    ("sums", "count", "row"),
    [
        ([8.0, 0.0, 2.0], 4, [2.0, 0.0, 0.5]),
        ([0.0, 0.0, 0.0], 0, [1.0, 1.0, 1.0]),
        ([0.0, 0.0, 0.0], 9, [1.0, 1.0, 1.0]),
        ([5.0, 1.0, 2.0], 0, [1.0, 1.0, 1.0]),
        ([1e-45, 0.0, 0.0], 4, [1.0, 1.0, 1.0]),  # nothing is left after the division
    ],
)
def test_a_row_is_a_mean_and_never_all_zeros(
    sums: list[float], count: int, row: list[float]
) -> None:
    made = matrix(sums, count)
    found = made.row(Q)
    assert found is not None and found.dtype == np.float32 and found.tolist() == row
    assert made.sums[Q].tolist() == np.array(sums, np.float32).tolist()  # untouched
    assert made.row(DOWN) is None
    assert made.unseen() == []  # only experts are ever unseen


@pytest.mark.parametrize(("tokens", "chunks"), [(0, 0), (1, 1), (512, 1), (513, 2), (16384, 32)])
def test_chunks_are_rounded_up(tokens: int, chunks: int) -> None:
    assert matrix([1.0], 1, tokens).chunks == chunks


@pytest.mark.parametrize("type_name", ["iq2_xxs", "iq2_xs"])
def test_types_that_ggml_cannot_pack_without(type_name: str) -> None:
    scheme = gguf_scheme(type_name, WIDE)
    with pytest.raises(EmoExportError, match=rf"as {type_name} needs an imp.* --calibration FI"):
        check_importance(scheme, measured=False)
    check_importance(scheme, measured=True)


@pytest.mark.parametrize("type_name", ["q4_k_m", "q2_k", "iq2_s", "iq3_xxs", "q4_0"])
def test_types_that_can_do_without(type_name: str) -> None:
    check_importance(gguf_scheme(type_name, WIDE), measured=False)


@pytest.mark.parametrize("measured", [True, False])
def test_the_embedding_has_no_importance(measured: bool) -> None:
    scheme = gguf_scheme("q4_0", WIDE, {Part.EMBED: "iq2_xs"})
    with pytest.raises(EmoExportError, match="nothing measures for the embedding; choose another"):
        check_importance(scheme, measured)


def test_llama_imatrix_may_not_have_measured_the_head() -> None:
    scheme = gguf_scheme("q4_0", WIDE, {Part.HEAD: "iq2_xs"})
    check_importance(scheme, measured=True)
    with pytest.raises(EmoExportError, match=r"lm_head\.weight can't be iq2_xs.*--process-output"):
        check_importance(scheme, measured=True, head=False)
    check_importance(gguf_scheme("iq2_xs", WIDE), measured=True, head=False)


def test_overrides() -> None:
    assert parse_overrides(()) == {}
    found = parse_overrides(("expert_down=Q5_K", "HEAD=f16"))
    assert found == {Part.EXPERT_DOWN: "q5_k", Part.HEAD: "f16"}


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
        parse_overrides((given,))
    with pytest.raises(EmoExportError, match="head is there twice"):
        parse_overrides(("head=q8_0", "Head=q6_k"))


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
        check_overrides([part], scheme)
    check_overrides([p for p in Part if p in scheme.used_recipe], scheme)
