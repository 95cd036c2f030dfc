"""The importance matrix: how much each input column of each matrix matters.

For a matrix with inputs x it is the mean of x squared over calibration tokens, one value a column;
a quantiser weighs the squared error of a column by it. Source: llama.cpp `tools/imatrix` (the same
sums and counts), whose GGUF files `converters/gguf/imatrix.py` reads and writes.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from emo_export.errors import EmoExportError
from emo_export.interfaces import F32, InputStatistics, Statistics
from emo_export.model.names import Role, Slot, Step

IMATRIX = "imatrix.gguf"
"""The importance matrix in an exported folder."""

CHUNK = 512
"""Tokens of a chunk, in which llama.cpp counts calibration text."""


LARGEST = 1e20
"""Of a sum. Beyond some 1e38, ggml's quantisers overflow and end the process."""


LEAST = np.float32(2.0**-60)
"""Of a column's importance, as a share of the largest. Where all of a block have none, ggml makes
zeros of it whatever it holds, and a text that is short leaves many columns without any."""


def steadied(importance: F32) -> F32:
    """Importance (C,) as quantisers take it: the largest in [1, 2), none under LEAST.

    Times a power of two, which changes no rounding, but no product under- or overflows. All ones
    where there is none at all. Raises EmoExportError for a column's that is negative or not finite.
    """
    unfit = ~(np.isfinite(importance) & (importance >= 0))
    if unfit.any():
        column = int(unfit.argmax())
        raise EmoExportError(f"the importance of column {column} is {importance[column]}")
    largest = importance.max(initial=0)
    if largest == 0:
        return np.ones_like(importance)
    shares: F32 = np.ldexp(importance, 1 - np.frexp(largest)[1])
    return np.maximum(shares, LEAST)


@dataclass
class ImportanceMatrix:
    """Per matrix: `sums` (C,), the sum of squared inputs, and `counts`, how many tokens it saw.

    `source` names the calibration text of `tokens` tokens.
    """

    source: str
    tokens: int
    sums: dict[Slot, F32] = field(default_factory=dict)
    counts: dict[Slot, int] = field(default_factory=dict)

    def row(self, slot: Slot) -> F32 | None:
        """Importance (C,) of the columns of a matrix; all ones when it saw no token.

        None for a matrix that was not measured (the embedding, the router).
        """
        if slot not in self.sums:
            return None
        sums, count = self.sums[slot], self.counts[slot]
        row: F32 = sums / np.float32(max(count, 1))
        # All zeros would leave a quantiser nothing to weigh.
        return row if count and row.any() else np.ones_like(sums)

    @property
    def chunks(self) -> int:
        """Chunks of the calibration text."""
        return -(-self.tokens // CHUNK)

    def statistics(self, step: Step, slot: Slot, needs: Statistics) -> InputStatistics | None:
        """What a quantiser asks for; None for a matrix that was not measured.

        Raises EmoExportError for second moments, which such a matrix does not have.
        """
        if needs == Statistics.SECOND_MOMENTS:
            raise EmoExportError(
                f"{self.source}: an importance matrix has no second moments for {slot.name}; use "
                "--calibration"
            )
        row = self.row(slot)
        return None if row is None else InputStatistics(self.counts[slot], row)

    def unseen(self) -> list[Slot]:
        """The experts' matrices that saw no token, in order."""
        return [s for s, count in self.counts.items() if count == 0 and s.expert >= 0]

    def few(self) -> dict[tuple[int, int], int]:
        """Tokens of each (layer, expert) that saw some, but fewer than a matrix has columns.

        More than half of the second moments of its gate and up is then the layer's mean.
        """
        return {
            (slot.layer, slot.expert): count
            for slot, count in self.counts.items()
            if slot.role == Role.GATE and 0 < count < len(self.sums[slot]) and slot.expert >= 0
        }
