"""Positions from the first to the last of the context, and the refusal of the next one."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from emo_export.converters.onnx.kinds import KINDS
from tests.converters.onnx.test_onnx_batching import SharedBuffer, slow, uses_gqa
from tests.converters.onnx.test_to_onnx import Session
from tests.kit.exporting import TIGHT, Array, assert_same, exported
from tests.kit.oracle import oracle_logits
from tests.kit.synth import make_checkpoint
from tests.kit.workspace import made_once

LONG = 4096
SHORT = 24
FLOATS = [f"onnx:f32@{graph}" for graph in KINDS]
# Head sizes of 16 go through GroupQueryAttention, of 8 through the standard operators.
SIZES = [16, 8]
ALL = [(size, target) for size in SIZES for target in FLOATS]


@functools.cache
def model(context: int, head_size: int) -> tuple[Path, Array, Array]:
    """A checkpoint, ids (1, context) and the oracle's logits (1, context, V)."""
    settings: dict[str, Any] = {"hidden_size": 2 * head_size, "num_attention_heads": 2}
    settings |= {"max_position_embeddings": context, "num_hidden_layers": 1}
    make = functools.partial(make_checkpoint, **settings)
    folder = made_once(f"context-{context}-{head_size}", make)
    ids = np.random.default_rng(5).integers(0, 500, (1, context))
    return folder, ids, oracle_logits(folder, ids)[0]


def ones(length: int, rows: int = 1) -> Array:
    return np.ones((rows, length), np.int64)


def run(session: Any, ids: Array, edges: list[int]) -> Array:
    """Logits of ids (1, T), fed up to each edge in turn."""
    starts = [0, *edges[:-1]]
    pieces = [session(ids[:, a:b], ones(b)) for a, b in zip(starts, edges, strict=True)]
    return np.concatenate(pieces, axis=1)


@pytest.mark.slow
@pytest.mark.parametrize(("size", "target"), ALL[:1] + [slow(*one) for one in ALL[1:]])
def test_4096_positions(size: int, target: str) -> None:
    folder, ids, want = model(LONG, size)
    made = exported(folder, target)
    last = list(range(LONG - 6, LONG + 1))
    for edges in ([LONG], [1000, 1001, 3000, *last]):
        assert_same(want, run(Session(made), ids, edges), TIGHT)
        if uses_gqa(made):
            assert_same(want, run(SharedBuffer(made, 1, LONG), ids, edges), TIGHT)


@pytest.mark.slow
@pytest.mark.parametrize("target", FLOATS)
@pytest.mark.parametrize("size", SIZES)
def test_a_short_row_beside_one_of_4096_positions(size: int, target: str) -> None:
    folder, ids, want = model(LONG, size)
    session = Session(exported(folder, target))
    length, real = LONG - 2, 900
    both, mask = np.repeat(ids, 2, axis=0), ones(LONG, 2)
    both[1, length - real :] = ids[0, : real + 2]
    mask[1, : length - real] = 0
    found = session(both[:, :length], mask[:, :length])
    assert_same(want[0, :length], found[0], TIGHT)
    assert_same(want[0, :real], found[1, length - real :], TIGHT)
    for end in (LONG - 1, LONG):
        found = session(both[:, end - 1 : end], mask[:, :end])
        assert_same(want[0, end - 1 : end], found[0], TIGHT)
        assert_same(want[0, real + end - LONG + 1 :][:1], found[1], TIGHT)


@pytest.mark.parametrize("target", FLOATS)
@pytest.mark.parametrize("size", SIZES)
def test_beyond_the_context_a_bare_graph_fails(size: int, target: str) -> None:
    folder, ids, want = model(SHORT, size)
    made, more = exported(folder, target), np.concatenate([ids, ids[:, :8]], axis=1)
    # onnxruntime's operators see the length of the tables, the standard ones an index too many.
    message = "cos_cache dimension 0" if uses_gqa(made) else "indices element out of data bounds"
    assert_same(want, run(Session(made), ids, [SHORT]), TIGHT)
    for edges in ([SHORT + 1], [SHORT, SHORT + 1], [SHORT - 2, SHORT - 1, SHORT + 3]):
        with pytest.raises(Exception, match=message):
            run(Session(made), more, edges)
    if uses_gqa(made):  # a runner's own buffer may be longer than the context
        session = SharedBuffer(made, 1, SHORT + 8)
        assert_same(want, run(session, ids, [SHORT - 3, SHORT - 2, SHORT - 1, SHORT]), TIGHT)
        with pytest.raises(Exception, match=message):
            session(more[:, SHORT : SHORT + 1], ones(SHORT + 1))


@pytest.mark.parametrize("target", FLOATS)
@pytest.mark.parametrize("size", SIZES)
def test_a_mask_longer_than_the_sequence_fails(size: int, target: str) -> None:
    folder, ids, _ = model(SHORT, size)
    session = Session(exported(folder, target))
    session(ids[:, :5], ones(5))
    with pytest.raises(Exception, match=r"total_sequence_length|attention_helper|broadcast"):
        session(ids[:, 5:6], ones(9))
