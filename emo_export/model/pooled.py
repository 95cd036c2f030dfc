"""Statistics of several texts as one: for the matrices that products of several domains share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from emo_export.interfaces import F32, InputStatistics, Statistics
from emo_export.model.config import EmoConfig
from emo_export.model.names import Role, Slot, Step


class Telling(Protocol):
    """A calibration of one text."""

    def statistics(self, step: Step, slot: Slot, needs: Statistics) -> InputStatistics | None:
        """Of a matrix's inputs, asked before it is fed; None where nothing was measured."""


class Pooled:
    """Means over the tokens of all texts, each of which goes through its own product.

    Domains count by their tokens, as if their texts were one. A shared matrix then serves each of
    them, where the importance of one domain would leave the others' inputs to chance.
    """

    def __init__(self, each: Sequence[Telling], config: EmoConfig) -> None:
        """`config` is that of every product."""
        self._each, self._config = each, config
        self._asked: tuple[Slot, Statistics] | None = None
        self._told: InputStatistics | None = None

    def holds(self, slot: Slot) -> bool:
        """Whether a matrix is the same in every product: no router and no routed expert."""
        if slot.role == Role.ROUTER:
            return False
        return slot.expert < 0 or slot.expert in self._config.layers[slot.layer].forced

    def statistics(self, step: Step, slot: Slot, needs: Statistics) -> InputStatistics | None:
        """Asked for every product, of which the first have been fed when the last ask."""
        if self._asked != (slot, needs):
            told = [one.statistics(step, slot, needs) for one in self._each]
            self._asked, self._told = (slot, needs), _mean([t for t in told if t is not None])
        return self._told


def _mean(told: Sequence[InputStatistics]) -> InputStatistics | None:
    if not told:
        return None
    counts = [one.tokens for one in told]
    diagonals = [one.diagonal for one in told if one.diagonal is not None]
    moments = [one.second_moments for one in told if one.second_moments is not None]
    return InputStatistics(sum(counts), _weighted(diagonals, counts), _weighted(moments, counts))


def _weighted(arrays: Sequence[F32], counts: Sequence[int]) -> F32 | None:
    """The mean of arrays by their counts; None where any lacks its own."""
    if len(arrays) < len(counts):
        return None
    if not sum(counts):
        return arrays[0]
    mean: F32 = np.average(np.stack(arrays), axis=0, weights=counts).astype(np.float32)
    return mean
