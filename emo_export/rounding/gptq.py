"""GPTQ: columns are rounded one after the other, and those to come make up for the errors so far.

Source: arXiv 2210.17323. With H the second moments of a matrix's inputs and U the upper Cholesky
factor of its inverse, a column j that is rounded by e too far moves every later column k by
-e U[j, k] / U[j, j]: what is then left of the outputs' squared error is least.
Scales of W columns are fixed when their turn comes, on rows that earlier columns have moved. The
columns with the largest inputs come first, when most others can still make up for them: blocks of W
by their sum, then columns inside a block, whose scales are fixed by then. Passes of coordinate
descent follow: each column is rounded again to where the error is least while all others stay.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from emo_export.errors import EmoExportError
from emo_export.interfaces import F32, Packed
from emo_export.model.finite import first
from emo_export.model.grid import Grid
from emo_export.reference.forward import Tensor

DAMPING = 0.01
"""Of the mean diagonal, added to it, so that inputs that hardly vary decide little."""
PASSES = 2
"""Over all columns, once more, after GPTQ."""
TOGETHER = 32
"""Columns of a block whose errors reach the block's later ones in one product."""
TRIES = 6
"""Each with ten times the damping, where the second moments can't be inverted."""


@dataclass(frozen=True)
class Factor:
    """What rounding the columns in one order, `order` (C,), needs of their inputs.

    In that order, `moments` (C, C) are the dampened second moments, and upper.T @ upper, of `upper`
    (C, C), is their inverse.
    """

    order: Tensor
    moments: Tensor
    upper: Tensor

    def undone(self, rows: Tensor, drift: Tensor) -> F32:
        """Rows (N, C), moved to give on their inputs what they gave on those that drifted."""
        lost = (rows @ drift)[:, self.order] @ self.upper.T @ self.upper
        moved: F32 = rows.index_add(1, self.order, lost).cpu().numpy()
        return moved


def factor(moments: Tensor, width: int) -> Factor:
    """The order of the columns of second moments (C, C), in blocks of `width`, and its factor.

    Columns that no input has count as independent of all others. Raises EmoExportError for moments
    that are not finite.
    """
    finite = torch.isfinite(moments).cpu().numpy()
    if not finite.all():
        row, column = first(~finite)
        raise EmoExportError(
            "the second moments of the calibration text are not finite: that of columns "
            f"{row} and {column} is {moments[row, column]}"
        )
    blocks = moments.diagonal().view(-1, width)
    places = blocks.sum(1).argsort(descending=True, stable=True)
    inside = blocks.argsort(dim=1, descending=True, stable=True)
    order = (places[:, None] * width + inside[places]).flatten()
    damped = moments[order][:, order]
    return Factor(order, damped, _inverted(damped))


def _inverted(damped: Tensor) -> Tensor:
    """U (C, C) with UT U = H^-1 for second moments H (C, C), which it dampens in place."""
    mean = damped.diagonal().mean()
    if mean <= 0:
        damped.fill_diagonal_(1.0)
        mean = torch.ones(())
    damping = DAMPING * mean
    for _ in range(TRIES):
        damped.diagonal().add_(damping)
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            found: Tensor
            inverse = torch.cholesky_inverse(lower)
            found, failed = torch.linalg.cholesky_ex(inverse, upper=True)
            if not failed:
                return found
        damping = 10 * damping
    raise EmoExportError("the second moments of the calibration text can't be inverted")


def round_columns(
    rows: F32, factor: Factor, grid: Grid, importance: F32 | None, passes: int = PASSES
) -> Packed:
    """Rows (N, C) -> packed arrays of the grid's format, given the factor of their inputs.

    `importance` (C,) weighs columns where scales are chosen; each of `passes` goes through all
    columns once more. Works on the device of the factor.
    """
    upper, width = factor.upper, grid.columns
    wanted = torch.from_numpy(np.ascontiguousarray(rows)).to(upper.device)[:, factor.order].T
    left, off = wanted.contiguous(), torch.empty_like(wanted)  # a column is a row here
    blocks = []
    for start in range(0, len(left), width):
        span = slice(start, start + width)
        block = _Block(left[span], factor.order[span], grid, importance)
        errors = block.correct(left[span], upper[span, span])
        off[span] = block.values - wanted[span]
        left[span.stop :] -= upper[span, span.stop :].T @ errors
        blocks.append(block)
    for _ in range(passes):
        for block, start in zip(blocks, range(0, len(left), width), strict=True):
            span = slice(start, start + width)
            block.settle(factor.moments[span] @ off, factor.moments[span, span])
            off[span] = block.values - wanted[span]
    made = [block.packed(grid) for block in sorted(blocks, key=lambda each: each.first)]
    return {name: np.concatenate([part[name] for part in made], axis=1) for name in made[0]}


class _Block:
    """W columns, one after the other as rows (W, N), under scales that are fixed.

    `first` is the matrix's column with which the block begins, `values` what columns became.
    """

    def __init__(self, columns: Tensor, order: Tensor, grid: Grid, importance: F32 | None) -> None:
        device, self.first = columns.device, int(order.min())
        self._inside = order - self.first
        rows = torch.empty_like(columns)
        rows[self._inside] = columns
        weigh = None if importance is None else importance[self.first : self.first + len(order)]
        self._fixed = grid.fix(np.ascontiguousarray(rows.T.cpu().numpy()), weigh)
        self._levels = torch.from_numpy(self._fixed.levels).to(device)
        self._between = (self._levels[1:] + self._levels[:-1]) / 2
        self._scale, self._offset = (
            torch.from_numpy(part).to(device).T[self._inside].contiguous()
            for part in (self._fixed.scale, self._fixed.offset)
        )
        self._codes = torch.empty(columns.shape, dtype=torch.uint8, device=device)
        self.values = torch.empty_like(columns)
        divisor = torch.where(self._scale == 0, 1.0, self._scale)
        # Taken apart once: most of a small operation's time is what leads to it.
        self._columns = [
            _Column(*parts)
            for parts in zip(
                self._scale, self._offset, divisor, self._codes, self.values, strict=True
            )
        ]

    def correct(self, columns: Tensor, upper: Tensor) -> Tensor:
        """Round columns (W, N), moved on the way; the errors (W, N) that move those to come."""
        errors, pivots = torch.empty_like(columns), upper.diagonal().tolist()
        for start in range(0, len(columns), TOGETHER):
            some = slice(start, min(start + TOGETHER, len(columns)))
            for j, (column, error) in enumerate(
                zip(columns[some], errors[some], strict=True), start
            ):
                self._round(j, column)
                torch.sub(column, self._columns[j].values, out=error).div_(pivots[j])
                columns[j + 1 : some.stop].addr_(upper[j, j + 1 : some.stop], error, alpha=-1)
            columns[some.stop :].addmm_(upper[some, some.stop :].T, errors[some], alpha=-1)
        return errors

    def settle(self, slopes: Tensor, moments: Tensor) -> None:
        """Round each column again to where the error is least while all others stay.

        `slopes` (W, N) are half the error's derivatives, `moments` (W, W) those of the columns.
        """
        moved, pivots = self.values.clone(), moments.diagonal().tolist()
        for start in range(0, len(slopes), TOGETHER):
            some = slice(start, min(start + TOGETHER, len(slopes)))
            for j, (slope, change) in enumerate(zip(slopes[some], moved[some], strict=True), start):
                self._round(j, torch.sub(change, slope, alpha=1 / pivots[j]))
                torch.sub(self._columns[j].values, change, out=change)
                slopes[j + 1 : some.stop].addr_(moments[j, j + 1 : some.stop], change)
            slopes[some.stop :].addmm_(moments[some, some.stop :].T, moved[some])

    def packed(self, grid: Grid) -> Packed:
        """In the format."""
        codes = torch.empty_like(self._codes)
        codes[self._inside] = self._codes
        return grid.pack(self._fixed, np.ascontiguousarray(codes.T.cpu().numpy()))

    def _round(self, j: int, column: Tensor) -> None:
        one = self._columns[j]
        code = torch.bucketize(torch.sub(column, one.offset).div_(one.divisor), self._between)
        one.codes.copy_(code)
        torch.addcmul(one.offset, self._levels[code], one.scale, out=one.values)


@dataclass(frozen=True, slots=True)
class _Column:
    """Of a block's column, for all rows (N,): views of what the block holds."""

    scale: Tensor
    offset: Tensor
    divisor: Tensor
    codes: Tensor
    values: Tensor
