"""GPTQ against the procedure of its paper, written out, and by what it is for: outputs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from emo_export.converters.gguf import grids as ggml
from emo_export.converters.gguf.formats import GGML_FORMATS
from emo_export.converters.onnx import grids as onnx
from emo_export.converters.onnx.formats import NBITS_FORMATS
from emo_export.errors import EmoExportError
from emo_export.interfaces import F32, Format, InputStatistics, Packed, Statistics
from emo_export.model.grid import Grid
from emo_export.rounding.gptq import DAMPING, factor, round_columns
from emo_export.rounding.quantiser import Factors, Gptq
from tests.kit.exporting import Array

FORMATS: list[tuple[Format, Grid | None]] = [
    *(
        (kind, onnx.grid_of(kind))
        for name in ("int4b16", "int8b32", "int2b32")
        for kind in [NBITS_FORMATS[name]]
    ),
    *(
        (GGML_FORMATS[name], ggml.grid_of(GGML_FORMATS[name]))
        for name in ("q4_0", "q8_0", "iq4_nl", "mxfp4", "q4_k", "q3_k", "q2_k", "q6_k")
    ),
]


def correlated(cols: int, tokens: int = 400, seed: int = 0) -> Array:
    """Inputs (tokens, C) of which later columns follow from earlier ones, largely."""
    rng = np.random.default_rng(seed)
    mix = rng.standard_normal((cols // 4, cols)) + 0.1
    return rng.standard_normal((tokens, cols // 4)) @ mix + 0.3 * rng.standard_normal(
        (tokens, cols)
    )


def written_out(rows: Array, moments: Array, grid: Grid, importance: F32) -> Array:
    """Optimal brain quantisation, blocks and then columns by the size of inputs, in float64.

    Each column is rounded, the others are moved by its error over its place in the inverse, and
    the inverse is that of the columns that are left.
    """
    left, cols, width = rows.astype(np.float64), rows.shape[1], grid.columns
    sizes = np.diag(moments)
    inverse = np.linalg.inv(moments + DAMPING * sizes.mean() * np.eye(cols))
    out = np.empty_like(left)
    for first in sorted(range(0, cols, width), key=lambda at: -sizes[at : at + width].sum()):
        span = slice(first, first + width)
        fixed = grid.fix(left[:, span].astype(np.float32), importance[span])
        for j in sorted(range(first, first + width), key=lambda at: -sizes[at]):
            k = j - first
            points = fixed.levels * fixed.scale[:, k, None] + fixed.offset[:, k, None]
            nearest = np.abs(points - left[:, j, None]).argmin(axis=1)
            out[:, j] = points[np.arange(len(rows)), nearest]
            left -= ((left[:, j] - out[:, j]) / inverse[j, j])[:, None] * inverse[j]
            inverse -= np.outer(inverse[:, j], inverse[j]) / inverse[j, j]
    return out


@pytest.mark.parametrize(("kind", "grid"), FORMATS, ids=lambda each: getattr(each, "name", ""))
def test_it_is_the_paper_written_out(kind: Format, grid: Grid | None) -> None:
    assert grid is not None
    cols, rng = 2 * max(grid.columns, 64), np.random.default_rng(1)
    rows = rng.standard_normal((24, cols)).astype(np.float32)
    inputs = correlated(cols)
    moments = inputs.T @ inputs / len(inputs)
    importance = np.diag(moments).astype(np.float32)
    made = factor(torch.from_numpy(moments.astype(np.float32)), grid.columns)
    found = kind.dequantize(round_columns(rows, made, grid, importance, passes=0))
    want = written_out(rows, moments, grid, importance)
    # A weight half-way between two points may go either way, and moves those after it.
    same = np.isclose(found, want, rtol=1e-3, atol=1e-4).mean()
    assert same > 0.9

    def cost(rounded: Array) -> float:
        return float((((rounded - rows) @ inputs.T) ** 2).sum())

    nearest = cost(kind.dequantize(kind.quantize(rows, importance)))
    assert cost(found) < 1.03 * cost(want) and cost(found) < 0.75 * nearest
    settled = kind.dequantize(round_columns(rows, made, grid, importance, passes=2))
    assert cost(settled) < cost(found)


def test_no_row_is_worse_than_by_the_formats_own_rounding() -> None:
    """Inputs with next to no correlation: a row is as often worse as better for corrections."""
    kind, rng = NBITS_FORMATS["int4b16"], np.random.default_rng(3)
    inputs = rng.standard_normal((2000, 64)).astype(np.float32)
    moments = inputs.T @ inputs / np.float32(len(inputs))
    rows = rng.standard_normal((200, 64)).astype(np.float32)
    told = InputStatistics(len(inputs), np.diag(moments).copy(), moments)
    grid = onnx.grid_of(kind)
    assert grid is not None

    def costs(rounded: Packed) -> Array:
        return np.square((kind.dequantize(rounded) - rows) @ inputs.T).sum(axis=1)

    own = costs(kind.quantize(rows, told.diagonal))
    made = factor(torch.from_numpy(moments), 16)
    alone = costs(round_columns(rows, made, grid, told.diagonal, passes=0))
    found = costs(Gptq(kind, grid, Factors()).quantize(rows, told))
    assert (alone > 1.001 * own).any() and (found <= 1.001 * own).all()
    assert found.sum() < alone.sum() < own.sum()


def test_without_correlation_it_is_the_nearest() -> None:
    kind = NBITS_FORMATS["int8b32"]
    rows = np.random.default_rng(2).standard_normal((9, 96)).astype(np.float32)
    told = InputStatistics(5, np.ones(96, np.float32), np.diag(np.arange(1, 97)).astype(np.float32))
    found = Gptq(kind, onnx.grid_of(kind), Factors()).quantize(rows, told)
    want = kind.quantize(rows)
    for name in want:
        np.testing.assert_array_equal(found[name], want[name])


def test_a_matrix_makes_up_for_inputs_that_drifted() -> None:
    """On what the quantised model feeds it, it gives what the float matrix gave on the original."""
    kind, rng = NBITS_FORMATS["int8b32"], np.random.default_rng(6)
    grid = onnx.grid_of(kind)
    assert grid is not None
    rows = rng.standard_normal((16, 64)).astype(np.float32)
    original = correlated(64, seed=4)
    inputs = original @ (np.eye(64) + 0.05 * rng.standard_normal((64, 64)))
    moments = (inputs.T @ inputs / len(inputs)).astype(np.float32)
    drift = ((original - inputs).T @ inputs / len(inputs)).astype(np.float32)
    told = InputStatistics(len(inputs), np.diag(moments).copy(), moments)
    want = original @ rows.T

    def cost(told: InputStatistics) -> float:
        found = kind.dequantize(Gptq(kind, grid, Factors()).quantize(rows, told))
        return float(np.square(inputs @ found.T - want).sum())

    damped = inputs.T @ inputs + DAMPING * np.trace(inputs.T @ inputs) / 64 * np.eye(64)
    best = rows + np.linalg.solve(damped, inputs.T @ (original - inputs) @ rows.T).T
    least = np.square(inputs @ best.T - want).sum()
    assert cost(replace(told, drift=drift)) < 1.1 * least < 0.05 * cost(told)
    moved = factor(torch.from_numpy(moments), grid.columns).undone(
        torch.from_numpy(rows), torch.from_numpy(drift)
    )
    np.testing.assert_allclose(moved, best, 1e-2, 1e-2)


@pytest.mark.parametrize("size", [1e38, np.nan])
@pytest.mark.parametrize(
    ("kind", "grid"),
    [
        (GGML_FORMATS["q4_0"], ggml.grid_of(GGML_FORMATS["q4_0"])),
        (NBITS_FORMATS["int4b32"], onnx.grid_of(NBITS_FORMATS["int4b32"])),
    ],
)
def test_a_matrix_that_cannot_be_moved_stays(kind: Format, grid: Grid | None, size: float) -> None:
    rows = np.random.default_rng(7).standard_normal((3, 64)).astype(np.float32)
    told = InputStatistics(9, np.ones(64, np.float32), np.eye(64, dtype=np.float32))
    gptq = Gptq(kind, grid, Factors())
    found = gptq.quantize(rows, replace(told, drift=np.full((64, 64), size, np.float32)))
    want = gptq.quantize(rows, told)
    for name in want:
        np.testing.assert_array_equal(found[name], want[name])


def test_a_format_without_a_grid_rounds_as_ever() -> None:
    kind = GGML_FORMATS["f16"]
    gptq = Gptq(kind, ggml.grid_of(kind), Factors())
    assert gptq.needs == Statistics.DIAGONAL
    rows = np.ones((2, 32), np.float32)
    np.testing.assert_array_equal(gptq.quantize(rows, None)["rows"], kind.quantize(rows)["rows"])


def test_inputs_that_say_little() -> None:
    """Dead columns, fewer tokens than columns and none at all have a factor; NaN has none."""
    few = correlated(64, tokens=3).astype(np.float32)
    few[:, 5] = 0
    for moments in (few.T @ few, np.zeros((64, 64), np.float32)):
        upper = factor(torch.from_numpy(moments), 32).upper
        assert torch.isfinite(upper).all() and (upper.diagonal() > 0).all()
    with pytest.raises(EmoExportError, match="not finite"):
        factor(torch.full((4, 4), float("nan")), 2)
