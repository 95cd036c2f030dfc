"""Where the first value lies that is not a finite number, or beyond what a type holds."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from emo_export.errors import BadValueError
from emo_export.interfaces import F32


def first(bad: npt.NDArray[np.bool_]) -> tuple[int, ...]:
    """The place of the first True of an array that has one."""
    return tuple(int(at) for at in np.unravel_index(bad.argmax(), bad.shape))


def check_finite(rows: npt.NDArray[Any], reason: str, width: int = 1) -> None:
    """Values (N, G), each for `width` columns. Raises BadValueError with the first not finite."""
    finite = np.isfinite(rows)
    if not finite.all():
        row, group = first(~finite)
        raise BadValueError(row, group * width, f"{rows[row, group]} {reason}")


def check_within(rows: F32, largest: float, reason: str) -> None:
    """Rows (N, C). Raises BadValueError with the first beyond `largest`, a NaN among them."""
    # A NaN makes both comparisons false.
    if not (rows.max() <= largest and rows.min() >= -largest):
        row, column = first(~(np.abs(rows) <= largest))
        raise BadValueError(row, column, f"{rows[row, column]:.6g} {reason}")
