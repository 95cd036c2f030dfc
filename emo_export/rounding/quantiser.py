"""GPTQ as what an export packs with."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from emo_export.interfaces import F32, Format, InputStatistics, Packed, Statistics
from emo_export.model.grid import Grid
from emo_export.reference.forward import Tensor
from emo_export.rounding.gptq import factor, round_columns


@dataclass
class Factors:
    """The factor of the second moments that were seen last: matrices of a step share them."""

    device: str = "cpu"
    _moments: F32 | None = field(default=None, init=False)
    _factor: Tensor | None = field(default=None, init=False)

    def of(self, moments: F32) -> Tensor:
        """As `gptq.factor`."""
        if self._factor is None or self._moments is not moments:
            self._moments = moments
            self._factor = factor(torch.from_numpy(moments).to(self.device))
        return self._factor


@dataclass(frozen=True)
class Gptq:
    """Rounds by second moments where a format has a `grid`, and as the format does where not."""

    format: Format
    grid: Grid | None
    factors: Factors

    @property
    def needs(self) -> Statistics:
        """Second moments, where they are of use."""
        return Statistics.DIAGONAL if self.grid is None else Statistics.SECOND_MOMENTS

    @torch.no_grad()
    def quantize(self, rows: F32, inputs: InputStatistics | None) -> Packed:
        """Rows (N, C) float32 -> packed arrays of the format."""
        diagonal = None if inputs is None else inputs.diagonal
        if self.grid is None or inputs is None or inputs.second_moments is None:
            return self.format.quantize(rows, diagonal)
        return round_columns(rows, self.factors.of(inputs.second_moments), self.grid, diagonal)
