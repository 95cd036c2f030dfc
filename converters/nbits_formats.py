"""Formats: float32, the int8 / int4 blocks of ONNX Runtime's MatMulNBits and QMoE, int8 rows.

Source: onnxruntime `contrib_defs.cc` (MatMulNBits, QMoE, GatherBlockQuantized) and
`quantize_matmul_{4,8}bits`, whose bytes these are (tests/test_nbits_formats.py). Rows are for the
standard operator MatMulInteger, whose sums over a whole row take one scale.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from emo_export.interfaces import F32, Format, Packed

Bytes = npt.NDArray[np.uint8]


class Float32:
    """Rows as they are. Packed as {"weight": (N, C) float32}."""

    name = "f32"
    block = 1

    def nbytes(self, rows: int, cols: int) -> int:
        """Bytes of (rows, cols)."""
        return rows * cols * 4

    def quantize(self, rows: F32, importance: F32 | None = None) -> Packed:
        """Rows (N, C) float32, unchanged."""
        return {"weight": np.ascontiguousarray(rows, dtype=np.float32)}

    def dequantize(self, packed: Packed) -> F32:
        """Rows (N, C) float32, unchanged."""
        return packed["weight"]


class IntBlocks:
    """Symmetric blocks of `block` columns with one float32 scale each.

    Packed as {"weight": (N, C * bits / 8) uint8, "scales": (N, C / block) float32}. What is stored
    is q + 2**(bits-1); at 4 bits the low nibble is the even column. The scale is signed so that
    the value of largest magnitude maps to -2**(bits-1); one of almost that size and the other sign
    is clipped by at most one step.
    """

    def __init__(self, bits: int, block: int) -> None:
        self.bits = bits
        self.block = block
        self.name = f"int{bits}b{block}"
        self._half = 1 << (bits - 1)

    def nbytes(self, rows: int, cols: int) -> int:
        """Bytes of (rows, cols), scales included."""
        return rows * cols * self.bits // 8 + rows * (cols // self.block) * 4

    def quantize(self, rows: F32, importance: F32 | None = None) -> Packed:
        """Rows (N, C) float32 -> packed values and scales; C must be a multiple of the block."""
        blocks = rows.reshape(rows.shape[0], -1, self.block)
        low, high = blocks.min(axis=-1), blocks.max(axis=-1)
        extreme = np.where(-low >= high, low, high)
        scales = (extreme / np.float32(-self._half)).astype(np.float32)
        # A block of zeros, or one so small that its scale underflows, divides by 1 instead.
        divisor = np.where(scales == 0, np.float32(1), scales)
        values = np.rint(blocks / divisor[..., None])
        values = np.clip(values, -self._half, self._half - 1) + self._half
        stored: Bytes = values.astype(np.uint8).reshape(rows.shape)
        if self.bits == 4:
            stored = (stored[:, 0::2] | (stored[:, 1::2] << 4)).astype(np.uint8)
        return {"weight": stored, "scales": scales}

    def dequantize(self, packed: Packed) -> F32:
        """Packed values and scales -> rows (N, C) float32."""
        stored: Bytes = packed["weight"]
        scales: F32 = packed["scales"]
        if self.bits == 4:
            stored = np.stack([stored & 15, stored >> 4], axis=-1).reshape(stored.shape[0], -1)
        blocks = stored.reshape(*scales.shape, self.block).astype(np.float32) - self._half
        return (blocks * scales[..., None]).reshape(stored.shape[0], -1)


class Int8Rows:
    """Symmetric int8 with one float32 scale for each row: a block of 8 bits as long as the row.

    Packed as {"weight": (N, C) uint8, "scales": (N, 1) float32}; what is stored is q + 128. uint8
    and not int8, because a kernel for uint8 by int8 sums pairs in 16 bits on AVX2 and saturates.
    """

    name = "int8row"
    block = 1
    zero = 128

    def nbytes(self, rows: int, cols: int) -> int:
        """Bytes of (rows, cols), scales included."""
        return rows * cols + rows * 4

    def quantize(self, rows: F32, importance: F32 | None = None) -> Packed:
        """Rows (N, C) float32 -> packed values and scales."""
        return IntBlocks(8, rows.shape[1]).quantize(rows)

    def dequantize(self, packed: Packed) -> F32:
        """Packed values and scales -> rows (N, C) float32."""
        return IntBlocks(8, packed["weight"].shape[1]).dequantize(packed)


_KINDS: tuple[Format, ...] = (
    Float32(),
    Int8Rows(),
    *(IntBlocks(bits, block) for bits in (8, 4) for block in (32, 16)),
)
NBITS_FORMATS: Mapping[str, Format] = {kind.name: kind for kind in _KINDS}
