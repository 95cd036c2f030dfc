"""Formats: ggml's tensor types, packed by ggml itself.

Source: ggml-common.h (block layouts), ggml-quants.c (the packers). Of the types that gguf-py can
pack too, the bytes are the same (tests/converters/gguf/test_every_type.py).
"""

from __future__ import annotations

from collections.abc import Mapping

import gguf
import numpy as np

from emo_export.converters.gguf import libggml
from emo_export.errors import BadValueError
from emo_export.interfaces import F32, Packed
from emo_export.model.finite import check_finite, check_within, first

# The largest magnitude that a type stores: of f16 itself, of its f16 scale times the largest
# integer, and of bf16. Beyond it the file would hold infinities. With importance, ggml's search for
# the offset of q4_1 and q5_1 goes up to a third beyond a block's largest magnitude; every other
# type has f16 scales of at most that.
F16_MAX = 65504.0
LARGEST: Mapping[str, float] = {
    "f32": float(np.finfo(np.float32).max),
    "f16": F16_MAX,
    "bf16": 3.3895e38,
    "q8_0": F16_MAX * 127,
    "q5_1": F16_MAX / 2,
    "q4_1": F16_MAX / 2,
}
SCALES_AT: Mapping[str, tuple[int, ...]] = {
    **dict.fromkeys(("q8_0", "q5_0", "q4_0", "iq4_nl", "iq4_xs", "iq3_s", "iq3_xxs"), (0,)),
    **dict.fromkeys(("iq2_s", "iq2_xs", "iq2_xxs"), (0,)),
    **dict.fromkeys(("q5_1", "q4_1", "q5_k", "q4_k"), (0, 2)),
    "q6_k": (208,),
    "q3_k": (108,),
    "q2_k": (80, 82),
}
"""The bytes of a block at which a float16 begins."""
EXPONENTS = {"f16": np.uint16(0x7C00), "bf16": np.uint16(0x7F80)}
"""All bits of an exponent, which NaN and infinity have."""
MXFP4_LEAST = 2.0**-125
"""Of a block's largest, for an exponent that is not negative."""
E8M0_NAN = 255
"""Of mxfp4's scale, an exponent alone. Source: OCP Microscaling Formats 1.0, 5.4.1."""

_KIND = gguf.GGMLQuantizationType


class GgmlFormat:
    """One ggml tensor type. Packed as {"rows": (N, bytes of a row) uint8}."""

    def __init__(self, kind: gguf.GGMLQuantizationType) -> None:
        self.kind = kind
        self.name = kind.name.lower()
        self.block, self._block_bytes = gguf.GGML_QUANT_SIZES[kind]

    @property
    def needs_importance(self) -> bool:
        """Whether ggml can't pack this type without an importance matrix."""
        return libggml.requires_importance(int(self.kind))

    def nbytes(self, rows: int, cols: int) -> int:
        """Bytes of (rows, cols); cols must be a multiple of the block."""
        return rows * cols // self.block * self._block_bytes

    def quantize(self, rows: F32, importance: F32 | None = None) -> Packed:
        """Rows (N, C) float32 -> {"rows": (N, bytes)}; importance (C,) weighs the columns' errors.

        Raises BadValueError for a value that is too large or not finite, and EmoExportError for a
        type that needs importance and has none.
        """
        largest = LARGEST.get(self.name, F16_MAX)
        remedy = "" if self.kind == _KIND.F32 else "; use f32"
        reason = f"is beyond {largest:.5g}, the largest that {self.name} stores{remedy}"
        check_within(rows, largest, reason)
        if self.kind == _KIND.F32:
            return {"rows": np.ascontiguousarray(rows).view(np.uint8)}
        if self.kind == _KIND.F16:
            return {"rows": rows.astype(np.float16).view(np.uint8)}
        if self.kind == _KIND.MXFP4:
            rows = _without_tiny_blocks(rows, self.block)
        row_bytes = self.nbytes(1, rows.shape[1])
        return {"rows": libggml.quantize(rows, int(self.kind), row_bytes, importance)}

    def dequantize(self, packed: Packed) -> F32:
        """Packed rows -> (N, C) float32."""
        rows = np.ascontiguousarray(packed["rows"])
        if self.kind == _KIND.F32:
            return rows.view(np.float32)
        if self.kind == _KIND.F16:
            return rows.view(np.float16).astype(np.float32)
        if self.kind == _KIND.BF16:
            wide = rows.view(np.uint16).astype(np.uint32)
            wide <<= 16
            return wide.view(np.float32)
        cols = rows.shape[1] // self._block_bytes * self.block
        # ggml's C names have a capital K: q4_K, but iq4_xs.
        name = self.name[:-1] + "K" if self.name.endswith("_k") else self.name
        return libggml.dequantize(rows, name, cols)

    def check(self, packed: Packed) -> None:
        """Raises BadValueError for the first value or scale that is not finite."""
        rows = np.ascontiguousarray(packed["rows"])
        if self.kind == _KIND.F32:
            check_finite(rows.view(np.float32), "is not a finite number")
            return
        if self.name in EXPONENTS:  # their bits tell it much faster than numpy does
            bad = rows.view(np.uint16) & EXPONENTS[self.name] == EXPONENTS[self.name]
            if bad.any():
                row, column = first(bad)
                raise BadValueError(row, column, f"is not a finite number of {self.name}")
            return
        blocks = rows.reshape(len(rows), -1, self._block_bytes)
        if self.kind == _KIND.MXFP4:
            scales = np.where(blocks[..., 0] == E8M0_NAN, np.float32(np.nan), np.float32(1))
            check_finite(scales, "is the scale of a block of mxfp4", self.block)
            return
        for at in SCALES_AT[self.name]:
            scales = np.ascontiguousarray(blocks[..., at : at + 2]).view(np.float16)[..., 0]
            check_finite(scales, f"is a scale of a block of {self.name}", self.block)


def _without_tiny_blocks(rows: F32, block: int) -> F32:
    """Rows with zeros for blocks below MXFP4_LEAST, whose exponent ggml wraps around to NaN."""
    blocks = rows.reshape(len(rows), -1, block)
    tiny = np.maximum(blocks.max(-1), -blocks.min(-1)) < MXFP4_LEAST
    if not tiny.any():
        return rows
    blocks = np.where(tiny[..., None], np.float32(0), blocks)
    return blocks.reshape(rows.shape)


_KINDS = (
    *(_KIND.F32, _KIND.F16, _KIND.BF16, _KIND.Q8_0, _KIND.Q6_K),
    *(_KIND.Q5_K, _KIND.Q5_1, _KIND.Q5_0, _KIND.Q4_K, _KIND.Q4_1, _KIND.Q4_0),
    *(_KIND.IQ4_NL, _KIND.IQ4_XS, _KIND.MXFP4, _KIND.Q3_K, _KIND.IQ3_S, _KIND.IQ3_XXS),
    *(_KIND.Q2_K, _KIND.IQ2_S, _KIND.IQ2_XS, _KIND.IQ2_XXS),
)
GGML_FORMATS: Mapping[str, GgmlFormat] = {kind.name.lower(): GgmlFormat(kind) for kind in _KINDS}
