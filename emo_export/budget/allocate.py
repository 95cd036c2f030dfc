"""The least sum of losses within a budget: one option for each site, a multiple-choice knapsack."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

CELLS = 1 << 16
"""Steps, of at least one byte, into which a budget is divided; costs are rounded up to them.

Of n sites at most n of the CELLS parts of a budget are left unused for that. Whole costs that
differ by no more than CELLS in all are not rounded, and the choice is exact.
"""


@dataclass(frozen=True)
class Option:
    """What one type of a site takes of the budget, and the loss that it was measured to cause."""

    cost: float
    loss: float


def allocate(options: Sequence[Sequence[Option]], budget: float) -> list[int] | None:
    """The index of each site's option; None where even the cheapest ones exceed the budget.

    Dynamic programming over the sites: best[c] is the least loss of those so far at a cost of at
    most c cells.
    """
    least = [min(option.cost for option in each) for each in options]
    room = budget - sum(least)
    if room < 0:
        return None
    most = sum(max(o.cost for o in each) - low for each, low in zip(options, least, strict=True))
    # What is left above the dearest options is of no use, so that the cells are for what is.
    cell = max(min(room, most) / CELLS, 1.0)
    width = int(min(room, most) / cell) + 1
    best = np.zeros(width)
    chosen = np.empty((len(options), width), np.int16)
    for site, (each, low) in enumerate(zip(options, least, strict=True)):
        found = np.full(width, np.inf)
        for index, option in enumerate(each):
            cells = int(np.ceil((option.cost - low) / cell - 1e-9))
            if cells < width:
                loss = np.full(width, np.inf)
                loss[cells:] = best[: width - cells] + option.loss
                better = loss < found
                found[better] = loss[better]
                chosen[site][better] = index
        best = found
    at, picks = width - 1, []
    for site in range(len(options) - 1, -1, -1):
        pick = int(chosen[site, at])
        picks.append(pick)
        at -= int(np.ceil((options[site][pick].cost - least[site]) / cell - 1e-9))
    return picks[::-1]
