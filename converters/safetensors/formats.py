"""Formats: the element types of a safetensors file, in which a checkpoint's values stay.

Source: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from emo_export.interfaces import F32, Packed
from emo_export.model.finite import check_finite
from emo_export.model.safetensors_file import ITEM_BYTES


class Stored:
    """One element type. Packed as {"rows": (N, bytes of a row) uint8}."""

    block = 1

    def __init__(self, name: str) -> None:
        """`name` as in the file's header: F32, F16 or BF16."""
        self.name = name

    def nbytes(self, rows: int, cols: int) -> int:
        """Bytes of (rows, cols)."""
        return rows * cols * ITEM_BYTES[self.name]

    def quantize(self, rows: F32, importance: F32 | None = None) -> Packed:
        """Rows (N, C) float32 that came from this type -> its bytes, the same as they were."""
        if self.name == "BF16":
            # Rows that were read from bfloat16 have nothing in their lower half.
            halves = np.ascontiguousarray(rows).view("<u2")[:, 1::2]
            return {"rows": np.ascontiguousarray(halves).view(np.uint8)}
        kind = {"F32": "<f4", "F16": "<f2"}[self.name]
        return {"rows": np.ascontiguousarray(rows, dtype=kind).view(np.uint8)}

    def dequantize(self, packed: Packed) -> F32:
        """Packed rows -> (N, C) float32."""
        raw = np.ascontiguousarray(packed["rows"])
        if self.name == "BF16":
            wide = raw.view("<u2").astype(np.uint32)
            wide <<= 16
            return wide.view(np.float32)
        return raw.view({"F32": "<f4", "F16": "<f2"}[self.name]).astype(np.float32)

    def check(self, packed: Packed) -> None:
        """Raises BadValueError for the first value that is not finite."""
        check_finite(self.dequantize(packed), f"is not a finite number of {self.name}")


STORED: Mapping[str, Stored] = {name: Stored(name) for name in ("F32", "F16", "BF16")}
