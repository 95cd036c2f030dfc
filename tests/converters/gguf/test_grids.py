"""Grids of ggml's types against ggml's own bytes and the dequantisers of gguf-py and libggml."""

from __future__ import annotations

import gguf
import numpy as np
import pytest

from emo_export.converters.gguf.formats import GGML_FORMATS
from emo_export.converters.gguf.grids import GgmlGrid, ScaledGrid, grid_of
from emo_export.converters.gguf.scaled import scaled
from emo_export.errors import EmoExportError
from emo_export.model.grid import Fixed
from tests.kit.exporting import Array

ONE, NONE = (0x00, 0x3C), (0x00, 0x00)  # float16
K_ONES = (1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1, 1)
UNIT: dict[str, tuple[tuple[int, tuple[int, ...]], ...]] = {
    "q4_0": ((0, ONE),),
    "q4_1": ((0, ONE + NONE),),
    "q5_0": ((0, ONE),),
    "q5_1": ((0, ONE + NONE),),
    "q8_0": ((0, ONE),),
    "iq4_nl": ((0, ONE),),
    "mxfp4": ((0, (128,)),),
    "iq4_xs": ((0, ONE), (2, (0xAA, 0xAA)), (4, (0x11,) * 4)),
    "q2_k": ((0, (0x01,) * 16), (80, ONE + NONE)),
    "q3_k": ((96, (0x11,) * 8 + (0xAA,) * 4), (108, ONE)),
    "q4_k": ((0, ONE + NONE), (4, K_ONES)),
    "q5_k": ((0, ONE + NONE), (4, K_ONES)),
    "q6_k": ((192, (1,) * 16), (208, ONE)),
}
"""Of each type, the bytes that make every scale 1 and every minimum 0, so that levels are left."""

COUNTS = {"q8_0": 255, "mxfp4": 15, "q2_k": 4, "q3_k": 8, "q5_0": 32, "q5_1": 32, "q5_k": 32}
COUNTS["q6_k"] = 64


def grid(name: str) -> GgmlGrid:
    found = grid_of(GGML_FORMATS[name])
    assert isinstance(found, GgmlGrid)
    return found


def some_rows(cols: int, seed: int = 0) -> Array:
    """Rows of many sizes, of one sign, of zeros, with one large value, subnormal as a float16."""
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((44, cols)).astype(np.float32)
    rows *= np.repeat(10.0 ** np.array([0, -2, -4, -6, -7, -9, -30, -42, 2, 3, 0]), 4)[:, None]
    rows[0] = 0
    rows[1], rows[2] = np.abs(rows[1]), -np.abs(rows[2])
    rows[3, : cols // 2] = 0
    rows[40, 5] = -300.0
    rows[41], rows[42] = 0.7, -0.7
    rows[43] = np.round(rows[43] * 4) / 4  # ties
    return rows


def dequantised(name: str, blocks: Array) -> Array:
    found = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[name.upper()])
    return np.asarray(found, np.float32)


def codes_in(name: str, blocks: Array, fixed: Fixed) -> Array:
    """The codes in packed blocks, by gguf-py: with scales of 1 a block decodes to its levels."""
    plain = blocks.copy()
    for start, values in UNIT[name]:
        plain[:, start : start + len(values)] = values
    levels = dequantised(name, plain)
    codes = np.searchsorted(fixed.levels, levels).astype(np.uint8)
    np.testing.assert_array_equal(fixed.levels[codes], levels)
    return codes


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", UNIT)
def test_the_codes_that_ggml_chose_give_its_bytes(name: str, weighted: bool) -> None:
    found = grid(name)
    rows = some_rows(found.columns)
    weights = np.random.default_rng(1).random(found.columns, np.float32) if weighted else None
    fixed = found.fix(rows, weights)
    expected = GGML_FORMATS[name].quantize(rows, weights)["rows"]
    codes = codes_in(name, expected, fixed)
    np.testing.assert_array_equal(found.pack(fixed, codes)["rows"], expected)
    np.testing.assert_array_equal(fixed.packed["rows"], expected)
    # And they are codes of the rows: the nearest, or about that, of their levels.
    value = fixed.scale * fixed.levels[codes] + fixed.offset
    np.testing.assert_array_equal(value, dequantised(name, expected))
    assert np.corrcoef(value[:4].ravel(), rows[:4].ravel())[0, 1] > 0.9


@pytest.mark.parametrize("name", UNIT)
def test_any_codes_decode_to_scale_times_level_plus_offset(name: str) -> None:
    found = grid(name)
    fixed = found.fix(some_rows(found.columns, 2), None)
    rng = np.random.default_rng(3)
    count = len(fixed.levels)
    assert count == COUNTS.get(name, 16) and (np.diff(fixed.levels) > 0).all()
    assert len(np.unique(fixed.scale)) > 12 and fixed.scale.shape == fixed.offset.shape
    assert fixed.scale.dtype == fixed.offset.dtype == fixed.levels.dtype == np.float32
    codes = rng.integers(0, count, fixed.scale.shape).astype(np.uint8)
    codes[5], codes[6] = 0, count - 1
    packed = found.pack(fixed, codes)
    expected = fixed.scale * fixed.levels[codes] + fixed.offset
    np.testing.assert_array_equal(dequantised(name, packed["rows"]), expected)
    # libggml may fuse the product and the sum: half a unit in the last place of either.
    in_c = GGML_FORMATS[name].dequantize(packed)
    most = np.spacing(np.abs(fixed.scale * fixed.levels[codes]) + np.abs(fixed.offset))
    assert (np.abs(in_c - expected) <= most).all()
    np.testing.assert_array_equal(codes_in(name, packed["rows"], fixed), codes)


@pytest.mark.parametrize("name", UNIT)
def test_all_bits_of_the_scales_are_read_as_gguf_py_reads_them(name: str) -> None:
    """Also those that ggml did not choose: the largest, negative and odd ones."""
    found = grid(name)
    rng = np.random.default_rng(5)
    size = GGML_FORMATS[name].nbytes(1, found.columns)
    blocks = rng.integers(0, 256, (64, size)).astype(np.uint8)
    for start, values in UNIT[name]:
        if values[:2] == ONE:  # finite ones
            halves = rng.uniform(-2, 2, (64, len(values) // 2)).astype(np.float16)
            blocks[:, start : start + len(values)] = halves.view(np.uint8)
    if name == "mxfp4":
        blocks[:, 0] = np.linspace(0, 250, 64)
    if name == "q8_0":
        blocks[blocks == 0x80] = 0  # -128, which ggml never stores
    fixed = found.fixed({"rows": blocks})
    codes = codes_in(name, blocks, fixed)
    value = fixed.scale * fixed.levels[codes] + fixed.offset
    np.testing.assert_array_equal(value, dequantised(name, blocks))


def test_a_factor_is_divided_out_again() -> None:
    inner = grid("q4_k")
    found = grid_of(scaled(GGML_FORMATS["q4_k"], 3.0))
    assert isinstance(found, ScaledGrid) and found.columns == 256
    rows = some_rows(256)[:12]
    fixed, plain = found.fix(rows, None), inner.fix(rows * np.float32(3), None)
    codes = codes_in("q4_k", plain.packed["rows"], plain)
    packed = found.pack(fixed, codes)
    np.testing.assert_array_equal(packed["rows"], plain.packed["rows"])
    value = fixed.scale * fixed.levels[codes] + fixed.offset
    expected = scaled(GGML_FORMATS["q4_k"], 3.0).dequantize(packed)
    np.testing.assert_allclose(value, expected, rtol=0, atol=2**-21 * np.abs(rows).max())
    # Which columns it would be given is not told, and vectors of a codebook have no levels.
    assert grid_of(scaled(GGML_FORMATS["q4_k"], 3.0, 256)) is None
    assert grid_of(scaled(GGML_FORMATS["f16"], 3.0)) is None


def test_every_type_has_a_grid_or_is_known_to_have_none() -> None:
    none = {"f32", "f16", "bf16", "iq3_s", "iq3_xxs", "iq2_s", "iq2_xs", "iq2_xxs"}
    assert {name for name, kind in GGML_FORMATS.items() if grid_of(kind) is None} == none
    assert set(GGML_FORMATS) == none | set(UNIT)


def test_another_shape_and_codes_without_a_level_are_refused() -> None:
    found = grid("q3_k")
    rows = some_rows(256)
    fixed = found.fix(rows, None)
    codes = np.zeros(rows.shape, np.uint8)
    for wrong in (rows[:, :128], rows[0], np.zeros((2, 512), np.float32)):
        with pytest.raises(EmoExportError, match="a block of q3_k"):
            found.fix(wrong, None)
    for other in (codes[:, 1:], codes[1:], codes[0]):
        with pytest.raises(EmoExportError, match="a block of q3_k"):
            found.pack(fixed, other)
    codes[3, 7] = 8
    with pytest.raises(EmoExportError, match="code 8 for q3_k, which has 8 levels"):
        found.pack(fixed, codes)
    with pytest.raises(EmoExportError, match="columns"):
        found.fix(rows, np.ones(32, np.float32))
