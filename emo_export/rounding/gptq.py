"""GPTQ: columns are rounded one after the other, and those to come make up for the errors so far.

Source: arXiv 2210.17323. With H the second moments of a matrix's inputs and U the upper Cholesky
factor of its inverse, a column j that is rounded by e too far moves every later column k by
-e U[j, k] / U[j, j]: what is then left of the outputs' squared error is least.
Scales of W columns are fixed when their turn comes, on rows that earlier columns have moved.
"""

from __future__ import annotations

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


def factor(moments: Tensor) -> Tensor:
    """The upper Cholesky factor U (C, C) of the inverse of second moments (C, C): UT U = H^-1.

    Columns that no input has count as independent of all others. Raises EmoExportError for moments
    that are not finite.
    """
    mean = moments.diagonal().mean()
    if not torch.isfinite(moments).all():
        raise EmoExportError("the second moments of the calibration text are not finite")
    damped = moments.clone()
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


def round_columns(rows: F32, upper: Tensor, grid: Grid, importance: F32 | None) -> Packed:
    """Rows (N, C) -> packed arrays of the grid's format, given U (C, C) of their inputs.

    `importance` (C,) weighs columns where scales are chosen. Works on the device of U.
    """
    left = torch.from_numpy(np.ascontiguousarray(rows)).to(upper.device, copy=True)
    width, cols = grid.columns, rows.shape[1]
    parts = []
    for start in range(0, cols, width):
        span = slice(start, start + width)
        weigh = None if importance is None else importance[span]
        fixed = grid.fix(np.ascontiguousarray(left[:, span].cpu().numpy()), weigh)
        codes, errors = _block(left[:, span], fixed, upper[span, span])
        parts.append(grid.pack(fixed, codes))
        left[:, span.stop :] -= errors @ upper[span, span.stop :]
    return {name: np.concatenate([part[name] for part in parts], axis=1) for name in parts[0]}


def _block(block: Tensor, fixed: Fixed, upper: Tensor) -> tuple[Codes, Tensor]:
    """Codes (N, W) of columns (N, W) that are moved on the way, and errors (N, W) for the rest."""
    device = block.device
    levels = torch.from_numpy(fixed.levels).to(device)
    between = (levels[1:] + levels[:-1]) / 2
    scale, offset = (torch.from_numpy(part).to(device).T for part in (fixed.scale, fixed.offset))
    divisor = torch.where(scale == 0, torch.ones_like(scale), scale)
    columns = block.T.contiguous()  # a column is a row here, in one piece
    codes = torch.empty(columns.shape, dtype=torch.uint8, device=device)
    errors = torch.empty_like(columns)
    for j, column in enumerate(columns):
        code = torch.bucketize((column - offset[j]) / divisor[j], between)
        codes[j] = code
        errors[j] = (column - (levels[code] * scale[j] + offset[j])) / upper[j, j]
        columns[j + 1 :] -= upper[j, j + 1 :, None] * errors[j]
    return np.ascontiguousarray(codes.T.cpu().numpy()), errors.T
