"""Blocks of few bits against ONNX Runtime's own quantisers, and against arithmetic by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnxruntime.capi import _pybind_state as ort

from emo_export.converters.onnx.formats import NBITS_FORMATS, IntBlocks
from emo_export.interfaces import Packed
from emo_export.model.recipes import BLOCKS_OF
from tests.kit.exporting import Array

KINDS = [(bits, block) for bits, blocks in BLOCKS_OF.items() for block in blocks]
SUBNORMAL = 1e-43  # half a scale's worth of float32's smallest numbers


def kind_of(bits: int, block: int) -> IntBlocks:
    kind = NBITS_FORMATS[f"int{bits}b{block}"]
    assert isinstance(kind, IntBlocks)
    return kind


def by_onnxruntime(rows: Array, bits: int, block: int) -> tuple[Array, Array]:
    """The weight bytes (N, C * bits / 8) and scales (N, C / block) of MatMulNBits, symmetric."""
    count, cols = rows.shape
    blocks = cols // block
    weight = np.zeros((count, blocks, block * bits // 8), np.uint8)
    scales = np.zeros((count, blocks), np.float32)
    points = np.zeros((count, (blocks * bits + 7) // 8), np.uint8)
    quantize = getattr(ort, f"quantize_matmul_{bits}bits")
    transposed = np.ascontiguousarray(rows.T)
    quantize(weight, transposed, scales, points, block, count, cols, True)
    return weight.reshape(count, -1), scales


def nearest(kind: IntBlocks, rows: Array) -> Packed:
    """Every value rounded to the nearest, with the scale at which a block's extreme just fits."""
    blocks = rows.reshape(len(rows), -1, kind.block)
    scales = kind.fitting_scales(blocks)
    return {"weight": kind.stored(blocks, scales), "scales": scales}


def normal(shape: tuple[int, int], scale: float) -> Array:
    rows = np.random.default_rng(5).standard_normal(shape) * scale
    rows[1] = 0
    return rows.astype(np.float32)


@pytest.mark.parametrize("scale", [1.0, 0.02, 1e-15, 1e-30, 1e30, 1e37])
@pytest.mark.parametrize(("bits", "block"), KINDS)
def test_bytes_are_those_of_onnxruntime(bits: int, block: int, scale: float) -> None:
    rows, kind = normal((33, 5 * block), scale), kind_of(bits, block)
    packed = nearest(kind, rows)
    weight, scales = by_onnxruntime(rows, bits, block)
    assert packed["weight"].dtype == np.uint8 and packed["scales"].dtype == np.float32
    np.testing.assert_array_equal(packed["weight"], weight)
    np.testing.assert_array_equal(packed["scales"], scales)
    if bits == 8:
        for name, array in kind.quantize(rows).items():
            np.testing.assert_array_equal(array, packed[name])


def block_norms(rows: Array, packed: Packed, kind: IntBlocks) -> Array:
    """The length of each block's error."""
    error = kind.dequantize(packed).astype(np.float64) - rows
    return np.asarray(np.sqrt((error.reshape(len(rows), -1, kind.block) ** 2).sum(axis=-1)))


@pytest.mark.parametrize("scale", [1.0, 1e-15, 1e-30, 1e15, 1e35])
@pytest.mark.parametrize(("bits", "block"), [kind for kind in KINDS if kind[0] < 8])
def test_the_search_is_nowhere_worse_than_onnxruntime(bits: int, block: int, scale: float) -> None:
    kind = kind_of(bits, block)
    rows = np.random.default_rng(6).standard_t(4, (200, 4 * block)).astype(np.float32) * scale
    rows[3, :block] = 0
    rows[4, :block] = scale  # all alike: no error at all
    rows[5, 0] = 400 * scale  # an outlier
    weight, scales = by_onnxruntime(rows, bits, block)
    theirs = block_norms(rows, {"weight": weight, "scales": scales}, kind)
    ours = block_norms(rows, kind.quantize(rows), kind)
    assert (ours <= theirs * 1.00001 + scale * 1e-6 * block).all()
    assert ours.sum() < 0.97 * theirs.sum()


@pytest.mark.parametrize(
    ("bits", "block", "fitting", "searched"),
    [
        (4, 32, 0.0860, 0.0811),
        (4, 128, 0.103, 0.097),
        (2, 32, 0.3624, 0.3315),  # 101 scales of both signs
        (2, 128, 0.4250, 0.3634),
    ],
)
def test_the_search_on_normal_weights(
    bits: int, block: int, fitting: float, searched: float
) -> None:
    """At 4 bits the figures of shared/docs/emo.md, which tried 24 scales and both signs."""
    kind, rows = kind_of(bits, block), np.random.default_rng(0).standard_normal((512, 1024))
    rows = rows.astype(np.float32)
    size = np.linalg.norm(rows.astype(np.float64))
    for packed, want in ((nearest(kind, rows), fitting), (kind.quantize(rows), searched)):
        found = np.linalg.norm(block_norms(rows, packed, kind)) / size
        assert found == pytest.approx(want, rel=0.01)


@pytest.mark.parametrize(("bits", "block"), KINDS)
def test_stored_values_by_hand(bits: int, block: int) -> None:
    half = 2 ** (bits - 1)
    rows = np.zeros((1, block), np.float32)
    rows[0, :4] = [-half, 1, 2, half - 1]  # the extreme is negative: the scale is 1
    packed = nearest(kind_of(bits, block), rows)
    np.testing.assert_array_equal(packed["scales"], [[1.0]])
    want = np.full(block, half)
    want[:4] += [-half, 1, 2, half - 1]
    if bits == 4:  # the even column is the low nibble
        np.testing.assert_array_equal(packed["weight"][0, :3], [0x90, 0xFA, 0x88])
        want = want[0::2] + 16 * want[1::2]
    if bits == 2:  # 2 is clipped to 1
        np.testing.assert_array_equal(packed["weight"][0, :2], [0b11111100, 0b10101010])
        return
    np.testing.assert_array_equal(packed["weight"][0], want)
    # The other sign flips the scale and keeps the bytes: the extreme is always -half.
    mirrored = nearest(kind_of(bits, block), -rows)
    np.testing.assert_array_equal(mirrored["scales"], [[-1.0]])
    np.testing.assert_array_equal(mirrored["weight"], packed["weight"])


@pytest.mark.parametrize(("bits", "block"), KINDS)
def test_a_block_of_zeros_comes_back_as_zeros(bits: int, block: int) -> None:
    rows = np.ones((2, 3 * block), np.float32)
    rows[:, block : 2 * block] = 0
    kind = kind_of(bits, block)
    packed = kind.quantize(rows)
    np.testing.assert_array_equal(packed["scales"] == 0, [[False, True, False]] * 2)
    np.testing.assert_array_equal(kind.dequantize(packed), rows)


@pytest.mark.parametrize("scale", [1e-15, 1e-36, 1e-38, 1e-40, 1e-43, 1e-45])
@pytest.mark.parametrize(("bits", "block"), KINDS)
def test_tiny_blocks_stay_finite_and_close(bits: int, block: int, scale: float) -> None:
    # A trained shared expert's router row reaches 1e-15 (docs/emo.md); ONNX Runtime's own
    # quantiser divides by an overflown reciprocal below 1e-37, so it is no witness here.
    rows = normal((20, 2 * block), scale)
    kind = kind_of(bits, block)
    with np.errstate(all="raise", under="ignore"):
        packed = kind.quantize(rows)
        found = kind.dequantize(packed)
    assert_within(kind, rows, packed["scales"], found)


def assert_within(kind: IntBlocks, rows: Array, scales: Array, found: Array) -> None:
    """Half a scale for every value between the ends; beyond them, the way to the end."""
    assert np.isfinite(found).all()
    scale = np.repeat(scales.astype(np.float64), kind.block, axis=1)
    half = 2 ** (kind.bits - 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        levels = np.where(scale == 0, 0, rows / scale)
    beyond = np.maximum(levels - (half - 1), -half - levels)
    limit = np.abs(scale) * np.maximum(beyond, 0.5) + 1e-6 * np.abs(rows) + SUBNORMAL
    assert (np.abs(found.astype(np.float64) - rows) <= limit).all()
    ours, theirs = (
        block_norms(rows, packed, kind) for packed in (kind.quantize(rows), nearest(kind, rows))
    )
    room = kind.block * (1e-6 * np.abs(rows.astype(np.float64)).max() + SUBNORMAL)
    assert (ours <= theirs + room).all()


@settings(max_examples=60, deadline=None)
@given(data=st.data(), shape=st.sampled_from(KINDS))
def test_the_error_is_bounded(data: st.DataObject, shape: tuple[int, int]) -> None:
    kind = kind_of(*shape)
    rows, blocks = data.draw(st.tuples(st.integers(1, 4), st.integers(1, 3)))
    values = (
        st.floats(-1, 1, width=32)
        | st.floats(-(2.0**-123), 2.0**-123, width=32)
        | st.floats(-(2.0**123), 2.0**123, width=32)
    )
    weights = data.draw(hnp.arrays(np.float32, (rows, blocks * kind.block), elements=values))
    with np.errstate(all="raise", under="ignore"):
        packed = kind.quantize(weights)
        found = kind.dequantize(packed)
    assert found.dtype == np.float32 and found.shape == weights.shape
    assert_within(kind, weights, packed["scales"], found)


@pytest.mark.parametrize(("bits", "block"), KINDS)
def test_the_largest_value_is_not_clipped(bits: int, block: int) -> None:
    rows = normal((40, 4 * block), 1.0)
    kind = kind_of(bits, block)
    found = kind.dequantize(nearest(kind, rows)).reshape(-1, block)
    blocks = rows.reshape(-1, block)
    place = np.abs(blocks).argmax(1)[:, None]
    extreme = np.take_along_axis(blocks, place, 1)
    assert (extreme > 0).any() and (extreme < 0).any()
    np.testing.assert_allclose(np.take_along_axis(found, place, 1), extreme, rtol=1e-6)


@pytest.mark.parametrize("name", NBITS_FORMATS)
def test_sizes_are_what_is_stored(name: str) -> None:
    kind = NBITS_FORMATS[name]
    rows = normal((6, 256), 1.0)
    packed = kind.quantize(rows)
    assert kind.name == name and 256 % kind.block == 0
    assert kind.nbytes(6, 256) == sum(array.nbytes for array in packed.values())
    assert all(len(array) == 6 for array in packed.values())


def test_float32_is_the_rows_themselves() -> None:
    rows = normal((3, 5), 1.0)
    kind = NBITS_FORMATS["f32"]
    found = kind.dequantize(kind.quantize(rows))
    assert found.dtype == np.float32 and found.tobytes() == rows.tobytes()


def test_int8_rows_have_one_scale_each() -> None:
    rows = np.random.default_rng(3).standard_normal((5, 37)).astype(np.float32)
    rows[2] *= 1e-3
    rows[4] = 0
    packed = NBITS_FORMATS["int8row"].quantize(rows)
    assert packed["weight"].shape == (5, 37) and packed["weight"].dtype == np.uint8
    assert packed["scales"].shape == (5, 1)
    error = np.abs(NBITS_FORMATS["int8row"].dequantize(packed) - rows)
    assert (error <= np.abs(rows).max(axis=1, keepdims=True) / 128 * 1.0001).all()
    assert (packed["weight"][np.arange(4), np.abs(rows[:4]).argmax(axis=1)] == 0).all()
