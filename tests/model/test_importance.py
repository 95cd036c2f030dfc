"""The importance matrix by itself, and which schemes need one."""

from __future__ import annotations

import numpy as np
import pytest

from emo_export.converters.gguf.scheme import check_importance, gguf_scheme
from emo_export.errors import EmoExportError
from emo_export.model.config import EmoConfig
from emo_export.model.importance import ImportanceMatrix
from emo_export.model.names import Role, Slot
from emo_export.model.recipes import Part
from tests.kit.synth import make_config

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
