"""Blocks of every ggml type, against gguf-py's packer and the C code that llama.cpp ships."""

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

from emo_export.converters.gguf.formats import GGML_FORMATS, LARGEST
from emo_export.errors import EmoExportError
from emo_export.runtimes.llama.abi import load_library
from tests.kit.exporting import Array
from tests.kit.ggml_types import GRIDS, each

EVEN = np.ones(512, np.float32)
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


@pytest.mark.parametrize("name", each(GGML_FORMATS))
def test_sizes_are_those_of_gguf(name: str) -> None:
    kind = GGML_FORMATS[name]
    block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name.upper()]]
    assert kind.name == name and kind.block == block
    assert kind.nbytes(3, 512) == 3 * 512 // block * size
    assert kind.quantize(normal((3, 512), 1.0), EVEN)["rows"].nbytes == kind.nbytes(3, 512)


@pytest.mark.parametrize("name", each(GGML_FORMATS))
def test_the_dequantiser_is_gguf_pys(name: str) -> None:
    kind = GGML_FORMATS[name]
    packed = kind.quantize(normal((40, 512), 0.3, seed=4), EVEN)
    found = kind.dequantize(packed)
    typed = packed["rows"] if name not in ("f32", "f16") else packed["rows"].view(kind_dtype(name))
    expected = gguf.quants.dequantize(typed, kind.kind)
    np.testing.assert_array_equal(found, expected)


def kind_dtype(name: str) -> type:
    return {"f32": np.float32, "f16": np.float16}[name]


@pytest.mark.parametrize("name", ["q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "mxfp4"])
def test_what_gguf_py_can_pack_has_its_bytes(name: str) -> None:
    rows = normal((300, 2048), 0.05, seed=5)  # several tasks, on several threads
    found = GGML_FORMATS[name].quantize(rows)["rows"]
    expected = gguf.quants.quantize(rows, gguf.GGMLQuantizationType[name.upper()])
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("name", each(["q4_0", "q4_k", "iq4_nl", "mxfp4", *GRIDS]))
def test_threads_change_no_byte(name: str) -> None:
    rows = normal((600, 1024), 0.05, seed=6)
    weights = np.random.default_rng(7).random(1024, dtype=np.float32) + np.float32(0.01)
    kind = GGML_FORMATS[name]
    whole = kind.quantize(rows[:300], weights)["rows"]
    parts = [kind.quantize(rows[i : i + 100], weights)["rows"] for i in (0, 100, 200)]
    np.testing.assert_array_equal(whole, np.concatenate(parts))


@pytest.mark.parametrize("name", each(["q4_0", "q4_k", "q3_k", "q2_k", "iq4_xs", "iq3_s", "iq2_s"]))
def test_importance_moves_the_error_to_columns_that_matter_less(name: str) -> None:
    rows = normal((64, 512), 0.05, seed=8)[1:]
    weights = np.where(np.arange(512) % 4 == 0, 30.0, 0.3).astype(np.float32)
    kind = GGML_FORMATS[name]

    def error(importance: Array | None) -> float:
        found = kind.dequantize(kind.quantize(rows, importance))
        return float((np.square(found - rows) * weights).sum())

    assert error(weights) < 0.98 * error(EVEN)


def test_importance_of_another_width_and_a_missing_one_are_refused() -> None:
    rows = normal((4, 256), 1.0)
    with pytest.raises(EmoExportError, match="columns"):
        GGML_FORMATS["q4_k"].quantize(rows, EVEN)
    assert GGML_FORMATS["iq2_xs"].needs_importance and not GGML_FORMATS["q4_k"].needs_importance
    with pytest.raises(EmoExportError, match="needs an importance matrix"):
        GGML_FORMATS["iq2_xs"].quantize(rows)


@pytest.mark.parametrize("name", each(set(GGML_FORMATS) - {"f32", "bf16", "mxfp4"}))
def test_overflow_is_refused_and_what_fits_is_finite(name: str) -> None:
    kind = GGML_FORMATS[name]
    largest = LARGEST.get(name, 65504.0)
    rows = normal((2, 512), 1.0)
    rows[1, 7] = np.float32(largest * 0.999)
    assert np.isfinite(kind.dequantize(kind.quantize(rows, EVEN))).all()
    rows[1, 7] = np.float32(largest * 1.001)
    with pytest.raises(EmoExportError, match="the largest that"):
        kind.quantize(rows, EVEN)


@pytest.mark.parametrize("name", ["q4_1", "q5_1", "q4_0", "q4_k", "q2_k", "iq4_nl"])
@pytest.mark.parametrize("seed", range(6))
def test_large_values_with_importance_stay_finite(name: str, seed: int) -> None:
    kind = GGML_FORMATS[name]
    largest = np.float32(LARGEST.get(name, 65504.0) * 0.999)
    rows = np.clip(normal((8, 512), float(largest) / 3, seed), -largest, largest)
    assert np.isfinite(kind.dequantize(kind.quantize(rows, EVEN))).all()
