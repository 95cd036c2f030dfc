"""GPTQ as what an export packs with."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from emo_export.interfaces import F32, Format, InputStatistics, Packed, Statistics
from emo_export.model.grid import Grid
from emo_export.rounding.gptq import Factor, factor, round_columns


@dataclass
class Factors:
    """The factors of the second moments that were seen last: matrices of a step share them."""

    device: str = "cpu"
    _moments: F32 | None = field(default=None, init=False)
    _found: dict[int, Factor] = field(default_factory=dict, init=False)

    def of(self, moments: F32, width: int) -> Factor:
        """As `gptq.factor`."""
        if self._moments is not moments:
            self._moments, self._found = moments, {}
        if width not in self._found:
            self._found[width] = factor(torch.from_numpy(moments).to(self.device), width)
        return self._found[width]


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
        found = self.factors.of(inputs.second_moments, self.grid.columns)
        return round_columns(rows, found, self.grid, diagonal)
