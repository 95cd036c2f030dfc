"""GPTQ: columns are rounded one after the other, and those to come make up for the errors so far.

Source: arXiv 2210.17323. With H the second moments of a matrix's inputs and U the upper Cholesky
factor of its inverse, a column j that is rounded by e too far moves every later column k by
-e U[j, k] / U[j, j]: what is then left of the outputs' squared error is least.
Scales of W columns are fixed when their turn comes, on rows that earlier columns have moved. The
columns with the largest inputs come first, when most others can still make up for them: blocks of W
by their sum, then columns inside a block, whose scales are fixed by then.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from emo_export.errors import EmoExportError
from emo_export.interfaces import F32, Packed
from emo_export.model.grid import Codes, Fixed, Grid
from emo_export.reference.forward import Tensor

DAMPING = 0.01
"""Of the mean diagonal, added to it, so that inputs that hardly vary decide little."""
TRIES = 6
"""Each with ten times the damping, where the second moments can't be inverted."""


@dataclass(frozen=True)
class Factor:
    """What rounding in one order needs: `upper` (C, C) of the columns numbered by `order` (C,).

    upper.T @ upper is the inverse of the dampened second moments of the columns in that order.
    """

    order: Tensor
    upper: Tensor


def factor(moments: Tensor, width: int) -> Factor:
    """The order of the columns of second moments (C, C), in blocks of `width`, and its factor.

    Columns that no input has count as independent of all others. Raises EmoExportError for moments
    that are not finite.
    """
    if not torch.isfinite(moments).all():
        raise EmoExportError("the second moments of the calibration text are not finite")
    blocks = moments.diagonal().view(-1, width)
    places = blocks.sum(1).argsort(descending=True, stable=True)
    inside = blocks.argsort(dim=1, descending=True, stable=True)
    order = (places[:, None] * width + inside[places]).flatten()
    return Factor(order, _inverted(moments[order][:, order]))


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


def round_columns(rows: F32, factor: Factor, grid: Grid, importance: F32 | None) -> Packed:
    """Rows (N, C) -> packed arrays of the grid's format, given the factor of their inputs.

    `importance` (C,) weighs columns where scales are chosen. Works on the device of the factor.
    """
    upper, width = factor.upper, grid.columns
    left = torch.from_numpy(np.ascontiguousarray(rows)).to(upper.device)[:, factor.order]
    parts = {}
    for start in range(0, rows.shape[1], width):
        span = slice(start, start + width)
        first = int(factor.order[span].min())
        inside = factor.order[span] - first
        block = torch.empty_like(left[:, span])
        block[:, inside] = left[:, span]
        weigh = None if importance is None else importance[first : first + width]
        fixed = grid.fix(block.cpu().numpy(), weigh)
        codes, errors = _block(left[:, span], fixed, inside, upper[span, span])
        parts[first] = grid.pack(fixed, codes)
        left[:, span.stop :] -= errors @ upper[span, span.stop :]
    made = [parts[first] for first in sorted(parts)]
    return {name: np.concatenate([part[name] for part in made], axis=1) for name in made[0]}


def _block(block: Tensor, fixed: Fixed, inside: Tensor, upper: Tensor) -> tuple[Codes, Tensor]:
    """Columns (N, W), which are `inside` (W,) the block, moved on the way.

    Codes (N, W) in the block's own order, errors (N, W) in that of the columns, for the rest.
    """
    device = block.device
    levels = torch.from_numpy(fixed.levels).to(device)
    between = (levels[1:] + levels[:-1]) / 2
    scale, offset = (torch.from_numpy(part).to(device).T for part in (fixed.scale, fixed.offset))
    divisor = torch.where(scale == 0, torch.ones_like(scale), scale)
    columns = block.T.contiguous()  # a column is a row here, in one piece
    codes = torch.empty(columns.shape, dtype=torch.uint8, device=device)
    errors = torch.empty_like(columns)
    for j, (place, column) in enumerate(zip(inside.tolist(), columns, strict=True)):
        code = torch.bucketize((column - offset[place]) / divisor[place], between)
        codes[place] = code
        errors[j] = (column - (levels[code] * scale[place] + offset[place])) / upper[j, j]
        columns[j + 1 :] -= upper[j, j + 1 :, None] * errors[j]
    return np.ascontiguousarray(codes.T.cpu().numpy()), errors.T
