"""A format's grid once the scales of some columns are fixed: what GPTQ rounds to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from emo_export.interfaces import F32, Packed

Codes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Fixed:
    """Scales of rows (N, W), fixed: a weight is `scale * levels[code] + offset`.

    scale, offset: (N, W) float32 (a scale may be negative or zero); levels: (n,) float32 ascending;
    packed: what the format made of the rows, whose scales `pack` keeps.
    """

    scale: F32
    offset: F32
    levels: F32
    packed: Packed


class Grid(Protocol):
    """How a format rounds columns whose scales are chosen together."""

    @property
    def columns(self) -> int:
        """W: columns whose scales are chosen together (a block; 256 for a K-quant)."""

    def fix(self, rows: F32, importance: F32 | None) -> Fixed:
        """Choose scales for rows (N, W); importance (W,) weighs the columns' errors."""

    def pack(self, fixed: Fixed, codes: Codes) -> Packed:
        """Codes (N, W), numbers of levels, under the fixed scales -> packed arrays (N, ...).

        The packed arrays of several W columns are joined along axis 1.
        """
