"""Formats: ggml blocks, as gguf-py packs them.

Source: ggml-common.h (block layouts), gguf-py `quants.py` (the reference packer of these types).
"""

from __future__ import annotations

from collections.abc import Mapping

import gguf
import numpy as np
from gguf.quants import dequantize, quantize

from emo_export.errors import EmoExportError
from emo_export.interfaces import F32, Packed

# The largest magnitude that a type stores: of f16 itself, of its f16 scale times the largest
# integer, and of bf16. Beyond it the file would hold infinities.
F16_MAX = 65504.0
LARGEST: Mapping[str, float] = {
    "f16": F16_MAX,
    "bf16": 3.3895e38,
    "q8_0": F16_MAX * 127,
    "q4_0": F16_MAX * 8,
}


class GgmlFormat:
    """One ggml tensor type. Packed as {"rows": (N, bytes of a row) uint8}."""

    def __init__(self, kind: gguf.GGMLQuantizationType) -> None:
        self.kind = kind
        self.name = kind.name.lower()
        self.block, self._block_bytes = gguf.GGML_QUANT_SIZES[kind]

    def nbytes(self, rows: int, cols: int) -> int:
        """Bytes of (rows, cols); cols must be a multiple of the block."""
        return rows * cols // self.block * self._block_bytes

    def quantize(self, rows: F32) -> Packed:
        """Rows (N, C) float32 -> {"rows": (N, bytes)}. Raises EmoExportError on overflow."""
        if self.kind == gguf.GGMLQuantizationType.F32:
            return {"rows": np.ascontiguousarray(rows).view(np.uint8)}
        largest = LARGEST[self.name]
        if max(rows.max(), -rows.min()) > largest:
            raise EmoExportError(
                f"a value exceeds {largest:.5g}, the largest that {self.name} can store; use f32"
            )
        packed = quantize(np.ascontiguousarray(rows), self.kind)
        return {"rows": packed.view(np.uint8).reshape(rows.shape[0], -1)}

    def dequantize(self, packed: Packed) -> F32:
        """Packed rows -> (N, C) float32, by gguf-py's own dequantiser."""
        rows = np.ascontiguousarray(packed["rows"])
        if self.kind == gguf.GGMLQuantizationType.F32:
            return rows.view(np.float32)
        if self.kind == gguf.GGMLQuantizationType.F16:
            return rows.view(np.float16).astype(np.float32)
        values: F32 = dequantize(rows, self.kind)
        return values


_KIND = gguf.GGMLQuantizationType
GGML_FORMATS: Mapping[str, GgmlFormat] = {
    kind.name.lower(): GgmlFormat(kind)
    for kind in (_KIND.F32, _KIND.F16, _KIND.BF16, _KIND.Q8_0, _KIND.Q4_0)
}
