"""GPTQ as what an export packs with."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np
import torch

from emo_export.errors import BadValueError
from emo_export.interfaces import F32, Format, InputStatistics, Packed, Statistics
from emo_export.model.grid import Grid
from emo_export.reference.forward import Tensor
from emo_export.rounding.gptq import Factor, factor, round_columns

TOGETHER = 1 << 20
"""Weights that are rounded at a time: some 30 bytes are held for each."""


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
    """Rounds by second moments where a format has a `grid`, and as the format does where not.

    Where inputs have drifted from the float model's, the matrix is moved first, so that on its
    inputs it comes closest to what the float matrix gives on those: W + W D H^-1, of drift D and
    second moments H. Source: least squares; arXiv 2504.02692 (GPTAQ) has the same aim.

    A row whose outputs the format's own rounding, weighed by importance, changes less gets that,
    and so do the rows beside one that GPTQ moves beyond what the format can store.
    """

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
        factor = self.factors.of(inputs.second_moments, self.grid.columns)
        moments = torch.from_numpy(inputs.second_moments).to(self.factors.device)
        drift = None if inputs.drift is None else torch.from_numpy(inputs.drift).to(moments.device)
        made = []
        count = max(1, TOGETHER // rows.shape[1])
        for start in range(0, len(rows), count):
            some = rows[start : start + count]
            try:
                own = self.format.quantize(some, diagonal)
            except BadValueError as error:
                raise error.below(start) from error
            if drift is not None:
                moved = factor.undone(torch.from_numpy(some).to(moments.device), drift)
                if np.isfinite(moved).all():
                    with suppress(BadValueError):  # it stays where the format can't store it moved
                        own, some = self.format.quantize(moved, diagonal), moved
            try:
                found = round_columns(some, factor, self.grid, diagonal)
            except BadValueError:  # what earlier columns moved is beyond the format's range
                made.append(own)
                continue
            # An error that is NaN is no better.
            worse = ~(self._errors(some, found, moments) <= self._errors(some, own, moments))
            made.append({n: np.where(worse[:, None], own[n], part) for n, part in found.items()})
        return {name: np.concatenate([part[name] for part in made]) for name in made[0]}

    def _errors(self, rows: F32, packed: Packed, moments: Tensor) -> F32:
        """Mean squared error (N,) of the outputs of packed rows (N, C)."""
        off = torch.from_numpy(self.format.dequantize(packed) - rows).to(moments.device)
        return ((off @ moments) * off).sum(1).cpu().numpy()
