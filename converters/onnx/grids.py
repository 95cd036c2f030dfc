"""The grids of ONNX's integer blocks: the format's scales, and integers that another may choose."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from emo_export.converters.onnx.formats import IntBlocks
from emo_export.errors import EmoExportError
from emo_export.interfaces import F32, Format, Packed
from emo_export.model.grid import Codes, Fixed, Grid
from emo_export.model.importance import steadied


@dataclass(frozen=True)
class IntGrid:
    """The grid of one length of block: integers from -half to half - 1, times a scale."""

    format: IntBlocks

    @property
    def columns(self) -> int:
        """W: a block."""
        return self.format.block

    def fix(self, rows: F32, importance: F32 | None) -> Fixed:
        """Scales of rows (N, W), as the format chooses them."""
        if rows.shape[1] != self.columns:
            raise EmoExportError(f"{rows.shape[1]} columns in place of a block of {self.columns}")
        weights = None if importance is None else steadied(importance)
        scales = self.format.scales(rows[:, None], weights)
        half = 1 << (self.format.bits - 1)
        levels = np.arange(-half, half, dtype=np.float32)
        spread = np.repeat(scales, self.columns, axis=1)
        return Fixed(spread, np.zeros_like(spread), levels, {"scales": scales})

    def pack(self, fixed: Fixed, codes: Codes) -> Packed:
        """Codes (N, W), which are what is stored -> bytes and scales (N, 1)."""
        return {"weight": self.format.joined(codes), "scales": fixed.packed["scales"]}


def grid_of(format: Format) -> Grid | None:
    """The grid of a format; None for one that has a scale for whole rows, or none."""
    return IntGrid(format) if isinstance(format, IntBlocks) else None
