"""ggml blocks against gguf-py's packer and against the C code that llama.cpp ships."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import gguf
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from emo_export.converters.ggml_formats import GGML_FORMATS
from emo_export.errors import EmoExportError
from emo_export.runtimes.llama_abi import load_library
from tests.exporting import Array

PACKED = ["f16", "bf16", "q8_0", "q4_0"]
Quantizer = Callable[[Array, str], Array]


@pytest.fixture(scope="module")
def in_c() -> Quantizer:
    """libggml's own quantiser: (rows, type name) -> bytes (N, bytes of a row)."""
    api = load_library().api
    chunk = api.ggml_quantize_chunk
    chunk.restype = ctypes.c_size_t
    long, pointer = ctypes.c_int64, ctypes.c_void_p
    chunk.argtypes = [ctypes.c_int, pointer, pointer, long, long, long, pointer]

    def quantize(rows: Array, name: str) -> Array:
        kind = gguf.GGMLQuantizationType[name.upper()]
        block, size = gguf.GGML_QUANT_SIZES[kind]
        count, cols = rows.shape
        out = np.full((count, cols // block * size), 0xA5, np.uint8)
        rows = np.ascontiguousarray(rows)
        done = chunk(int(kind), rows.ctypes.data, out.ctypes.data, 0, count, cols, None)
        assert done == out.nbytes
        return out

    return quantize


def normal(shape: tuple[int, int], scale: float, seed: int = 0) -> Array:
    rows = np.random.default_rng(seed).standard_normal(shape) * scale
    rows[0] = 0  # a block of zeros divides by a scale of 0
    return rows.astype(np.float32)


# Below 1e-7 the scale itself is subnormal or zero as a float16.
@pytest.mark.parametrize("scale", [1.0, 0.02, 1e-5, 1e-7, 1e-15, 1e-38, 1e-42, 2000.0])
@pytest.mark.parametrize("name", PACKED)
def test_bytes_are_those_of_gguf_py_and_of_c(name: str, scale: float, in_c: Quantizer) -> None:
    rows = normal((7, 96), scale)
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        found = GGML_FORMATS[name].quantize(rows)["rows"]
        expected = gguf.quants.quantize(rows, gguf.GGMLQuantizationType[name.upper()])
    assert found.dtype == np.uint8
    assert found.shape == (7, GGML_FORMATS[name].nbytes(1, 96))
    assert found.tobytes() == expected.tobytes()
    np.testing.assert_array_equal(found, in_c(rows, name))


@settings(max_examples=60, deadline=None)
@given(data=st.data(), name=st.sampled_from(PACKED))
def test_any_rows_give_the_bytes_of_c(data: st.DataObject, name: str, in_c: Quantizer) -> None:
    shape = data.draw(st.tuples(st.integers(1, 5), st.integers(1, 4).map(lambda n: 32 * n)))
    # Multiples of 1/8 are full of ties: for the largest of a block, and at .5 when rounding.
    values = st.floats(-1e4, 1e4, width=32) | st.integers(-64, 64).map(lambda n: n / 8)
    rows = data.draw(hnp.arrays(np.float32, shape, elements=values))
    kind = GGML_FORMATS[name]
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        packed = kind.quantize(rows)
    np.testing.assert_array_equal(packed["rows"], in_c(rows, name))
    again = kind.dequantize(packed)
    assert again.dtype == np.float32 and again.shape == rows.shape and np.isfinite(again).all()


def test_float32_is_the_rows_themselves() -> None:
    rows = np.array([[np.pi, -0.0, 1e-45, 3e38]] * 2, np.float32)
    kind = GGML_FORMATS["f32"]
    packed = kind.quantize(rows)
    assert packed["rows"].tobytes() == rows.tobytes() and packed["rows"].shape == (2, 16)
    assert kind.dequantize(packed).tobytes() == rows.tobytes()


@pytest.mark.parametrize(("name", "dtype"), [("f16", np.float16), ("bf16", ml_dtypes.bfloat16)])
def test_half_types_round_to_the_nearest(name: str, dtype: type) -> None:
    rows = normal((5, 40), 3.0)
    found = GGML_FORMATS[name].dequantize(GGML_FORMATS[name].quantize(rows))
    np.testing.assert_array_equal(found, rows.astype(dtype).astype(np.float32))


@pytest.mark.parametrize(("name", "step"), [("q8_0", 127), ("q4_0", 8)])
def test_the_error_of_a_block_is_bounded(name: str, step: int) -> None:
    rows = normal((50, 320), 0.5, seed=3)
    found = GGML_FORMATS[name].dequantize(GGML_FORMATS[name].quantize(rows))
    largest = np.abs(rows.reshape(50, -1, 32)).max(-1)
    error = np.abs(found - rows).reshape(50, -1, 32).max(-1)
    # Half a step of q8_0; q4_0 clips the side on which it has 7 steps, so up to a whole one.
    share = 0.5 if name == "q8_0" else 1.0
    assert (error <= largest * (share / step + 2**-10)).all()
    assert error.max() > 0
    # The other order of operands would read the sign of a scale away.
    assert np.corrcoef(found.ravel(), rows.ravel())[0, 1] > 0.99


@pytest.mark.parametrize("name", PACKED)
def test_what_is_stored_is_kept_when_stored_again(name: str) -> None:
    kind = GGML_FORMATS[name]
    once = kind.dequantize(kind.quantize(normal((9, 64), 1.0)))
    twice = kind.dequantize(kind.quantize(once))
    assert np.abs(twice - once).max() <= 2e-3 * np.abs(once).max()


def test_float16_overflow_is_refused() -> None:
    kind = GGML_FORMATS["f16"]
    rows = np.zeros((2, 32), np.float32)
    rows[1, 5] = -65504
    assert kind.dequantize(kind.quantize(rows))[1, 5] == -65504
    rows[1, 5] = -65505
    with pytest.raises(EmoExportError, match=r"65504.*f32"):
        kind.quantize(rows)


@pytest.mark.parametrize("name", GGML_FORMATS)
def test_sizes_are_those_of_gguf(name: str) -> None:
    kind = GGML_FORMATS[name]
    block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name.upper()]]
    assert kind.name == name and kind.block == block
    assert kind.nbytes(3, 64) == 3 * 64 // block * size
    assert kind.quantize(normal((3, 64), 1.0))["rows"].nbytes == kind.nbytes(3, 64)
