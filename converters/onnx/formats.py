"""Formats: float32, blocks of 8, 4 or 2 bits for ONNX Runtime's MatMulNBits and QMoE, int8 rows.

Source: onnxruntime `contrib_defs.cc` (MatMulNBits, QMoE, GatherBlockQuantized) and
`quantize_matmul_{2,4,8}bits`, whose bytes these are (tests/converters/onnx/test_nbits_formats.py).
Rows are for the standard operator MatMulInteger, whose sums over a whole row take one scale.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from emo_export.converters.onnx.search import FACTORS, extremes, searched_scales
from emo_export.converters.row_tasks import spread
from emo_export.interfaces import F32, Format, Packed
from emo_export.model.finite import check_finite
from emo_export.model.importance import steadied
from emo_export.model.recipes import BLOCKS_OF

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

    def check(self, packed: Packed) -> None:
        """Raises BadValueError for the first value that is not finite."""
        check_finite(packed["weight"], "is not a finite number")


class IntBlocks:
    """Symmetric blocks of `block` columns with one float32 scale each.

    Packed as {"weight": (N, C * bits / 8) uint8, "scales": (N, C / block) float32}. What is stored
    is q + 2**(bits-1), the first column in a byte's lowest bits. The scale is signed: at 8 bits the
    value of largest magnitude maps to -128, as in ONNX Runtime's own quantiser; below, the scale is
    searched.
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
        count, cols = rows.shape
        weights = None if importance is None else steadied(importance)
        packed = np.empty((count, cols * self.bits // 8), np.uint8)
        scales = np.empty((count, cols // self.block), np.float32)

        def work(start: int, stop: int) -> None:
            blocks = rows[start:stop].reshape(stop - start, -1, self.block)
            scales[start:stop] = self.scales(blocks, weights)
            packed[start:stop] = self.stored(blocks, scales[start:stop])

        spread(work, count, cols)
        return {"weight": packed, "scales": scales}

    def scales(self, blocks: F32, importance: F32 | None) -> F32:
        """Scales (N, G) for blocks (N, G, block); importance (G * block,) weighs the columns.

        It must be `steadied`.
        """
        if self.bits == 8:  # a search gains next to nothing there
            return self.fitting_scales(blocks)
        weights = None if importance is None else importance.reshape(blocks.shape[1:])
        return searched_scales(blocks, self._half, FACTORS[self.bits], weights)

    def fitting_scales(self, blocks: F32) -> F32:
        """Scales (N, G) with which the extreme of each of the blocks (N, G, block) just fits.

        One of almost that size and the other sign is clipped by at most one step.
        """
        return extremes(blocks) / np.float32(-self._half)

    def stored(self, blocks: F32, scales: F32) -> Bytes:
        """Blocks (N, G, block) rounded to multiples of their scales (N, G) -> bytes (N, ...)."""
        # A block of zeros, or one so small that its scale underflows, divides by 1 instead.
        divisor = np.where(scales == 0, np.float32(1), scales)[..., None]
        # As ONNX Runtime rounds: times the reciprocal (that of a subnormal scale is infinite), and
        # the half added in float32.
        with np.errstate(over="ignore", invalid="ignore"):
            values = blocks * (1 / divisor)
        subnormal = np.abs(divisor[..., 0]) < np.finfo(np.float32).tiny
        values[subnormal] = blocks[subnormal] / divisor[subnormal]
        values = np.clip(np.floor(values + np.float32(self._half + 0.5)), 0, 2 * self._half - 1)
        return self.joined(values.astype(np.uint8).reshape(len(blocks), -1))

    def joined(self, stored: Bytes) -> Bytes:
        """What is stored of each column (N, C) -> bytes (N, C * bits / 8)."""
        each = 8 // self.bits
        parts = (stored[:, at::each] << (self.bits * at) for at in range(each))
        return functools.reduce(np.bitwise_or, parts).astype(np.uint8)

    def dequantize(self, packed: Packed) -> F32:
        """Packed values and scales -> rows (N, C) float32."""
        stored: Bytes = packed["weight"]
        scales: F32 = packed["scales"]
        if self.bits < 8:
            shifts = np.arange(0, 8, self.bits, dtype=np.uint8)
            stored = (stored[..., None] >> shifts) & np.uint8(2 * self._half - 1)
            stored = stored.reshape(len(stored), -1)
        blocks = stored.reshape(*scales.shape, self.block).astype(np.float32) - self._half
        return (blocks * scales[..., None]).reshape(stored.shape[0], -1)

    def check(self, packed: Packed) -> None:
        """Raises BadValueError for the first scale with which an integer overflows float32."""
        with np.errstate(over="ignore"):
            largest = packed["scales"] * np.float32(self._half)
        check_finite(largest, f"is what {self.name} makes of its block's largest", self.block)


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

    def check(self, packed: Packed) -> None:
        """Raises BadValueError for the first scale with which an integer overflows float32."""
        IntBlocks(8, packed["weight"].shape[1]).check(packed)


_KINDS: tuple[Format, ...] = (
    Float32(),
    Int8Rows(),
    *(IntBlocks(bits, block) for bits, blocks in BLOCKS_OF.items() for block in blocks),
)
NBITS_FORMATS: Mapping[str, Format] = {kind.name: kind for kind in _KINDS}
