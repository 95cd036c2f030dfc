"""How weights are rounded to a format's grid."""

from __future__ import annotations

from enum import StrEnum


class Rounding(StrEnum):
    """What decides which point of the grid a weight becomes."""

    NEAREST = "nearest"  # the nearest, under scales that the weights alone decide
    WEIGHTED = "weighted"  # the format's own search, columns weighed by importance
    GPTQ = "gptq"  # column by column, later ones making up for the errors of earlier ones
