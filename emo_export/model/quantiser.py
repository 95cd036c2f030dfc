"""The quantiser that every format brings along: its own rounding, columns weighed by importance."""

from __future__ import annotations

from dataclasses import dataclass

from emo_export.interfaces import F32, Format, InputStatistics, Packed, Statistics


@dataclass(frozen=True)
class Weighted:
    """A format's own rounding, told how much each column matters.

    Types that round to the nearest value have no use for it; ggml's K- and I-quants do.
    """

    format: Format
    needs: Statistics = Statistics.DIAGONAL

    def quantize(self, rows: F32, inputs: InputStatistics | None) -> Packed:
        """Rows (N, C) float32 -> packed arrays of the format."""
        return self.format.quantize(rows, None if inputs is None else inputs.diagonal)
