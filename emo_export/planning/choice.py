"""Which of the planned targets a device holds, and which of those is to be taken."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from emo_export.planning.outline import Planned


@dataclass(frozen=True)
class Choice:
    """Among `planned`, for `usable` bytes of memory.

    `best`: the most experts, and with as many the most bytes of weights; None where nothing fits.
    `least`: the one that needs the least memory.
    """

    usable: int
    best: Planned | None
    least: Planned

    @property
    def short_by(self) -> int:
        """Bytes that are missing for the one that needs the least; 0 where it fits."""
        return max(0, self.least.running.total - self.usable)


def choose(planned: Sequence[Planned], usable: int) -> Choice:
    """The choice among at least one planned target."""
    held = [each for each in planned if each.running.total <= usable]
    best = max(held, key=lambda each: (each.experts, each.need.weights), default=None)
    return Choice(usable, best, min(planned, key=lambda each: each.running.total))
