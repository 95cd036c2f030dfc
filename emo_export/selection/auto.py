"""How many experts to keep, where that is to be found: what is asked, and what was tried."""

from __future__ import annotations

from dataclasses import dataclass

from emo_export.parity.losses import Loss
from emo_export.selection.method import Method

LOSS = 0.02
"""Of perplexity: what is allowed where nothing else is asked for."""


@dataclass(frozen=True)
class Auto:
    """The fewest within `loss` are to be kept, ranked by `method`."""

    loss: float = LOSS
    method: Method = Method.ROUTER
    seed: int = 0
    rescale: bool = False


@dataclass(frozen=True)
class Tried:
    """A count of experts of each layer, and what it costs."""

    keep: int
    loss: Loss


@dataclass(frozen=True)
class Found:
    """The counts that were tried, fewest first, and the first within the limit (None: not one).

    `judged_on` is the kind of held-out text that decided, `limit` the loss that is allowed, as 0.02
    for a perplexity 1.02 times that of all experts.
    """

    tried: tuple[Tried, ...]
    judged_on: str
    limit: float

    @property
    def keep(self) -> int | None:
        """The fewest experts within the limit."""
        return next((t.keep for t in self.tried if t.loss.ratio <= 1 + self.limit), None)
