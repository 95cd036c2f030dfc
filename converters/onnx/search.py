"""The scale of a block of 4 or 2 bits, searched for the least squared error.

ONNX Runtime's own quantiser takes the scale with which a block's extreme just fits. Here eight
smaller and larger ones are tried, and each time the scale of least squared error for the integers
that it gives is known in closed form. On normal weights that takes 6% off the error, as much as 48
scales of both signs do without the closed form; trying the other sign as well adds nothing. Of the
four levels of 2 bits it takes another 2.7%.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from emo_export.interfaces import F32

FACTORS: Mapping[int, Sequence[np.float32]] = {
    4: tuple(map(np.float32, (1, 0.7, 0.76, 0.82, 0.88, 0.94, 1.06, 1.12))),
    2: tuple(map(np.float32, (1, 0.5, 0.65, 0.8, -0.5, -0.65, -0.8, -1))),
}
"""Of the scale with which the extreme just fits, by bits."""


def extremes(blocks: F32) -> F32:
    """The value of largest magnitude of each block (..., C) -> (...); of equals the negative."""
    low, high = blocks.min(axis=-1), blocks.max(axis=-1)
    found: F32 = np.where(-low >= high, low, high)
    return found


def searched_scales(
    blocks: F32, half: int, factors: Sequence[np.float32], weights: F32 | None = None
) -> F32:
    """Signed scales (N, G) for blocks (N, G, C) of integers from -half to half - 1.

    `weights` (G, C) weigh the columns' squared errors.
    """
    found = extremes(blocks)
    unit = np.abs(found)
    # With a largest magnitude of 1 no square under- or overflows.
    relative = blocks / np.where(unit == 0, np.float32(1), unit)[..., None]
    fitting = np.sign(found) / np.float32(-half)
    best, chosen = np.full_like(fitting, -1), fitting
    levels = np.empty_like(relative)
    for factor in factors:
        inverse = 1 / np.where(fitting == 0, np.float32(1), fitting * factor)
        np.multiply(relative, inverse[..., None], out=levels)
        np.clip(np.rint(levels, out=levels), -half, half - 1, out=levels)
        # For values x and levels q the best scale is sum(x q) / sum(q q), and it takes that times
        # sum(x q) off the squared error.
        weighed = levels if weights is None else levels * weights
        along, squares = np.vecdot(weighed, relative), np.vecdot(weighed, levels)
        scale = along / np.where(squares == 0, np.float32(1), squares)
        gain = along * scale
        better = gain > best
        best, chosen = np.where(better, gain, best), np.where(better, scale, chosen)
    return np.asarray(chosen * unit, np.float32)
