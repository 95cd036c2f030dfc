"""The matrix `chosen on x, judged on y`: a table for a terminal, a heat map for a browser."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

from rich import box
from rich.table import Table
from rich.text import Text

from emo_export.parity.losses import Loss

LEVELS = (1.05, 1.2, 1.5, 2.0, 4.0)
"""Times the full model's perplexity: the bounds between the six levels of the heat map."""


class Chosen(Protocol):
    """A row of the matrix."""

    @property
    def chosen_on(self) -> str:
        """The kind of text."""

    @property
    def method(self) -> str:
        """What ranked the experts."""

    @property
    def loss(self) -> tuple[Loss, ...]:
        """What it costs on each kind of held-out text, and on all of it."""


def level(ratio: float) -> int:
    """Where a ratio lies among LEVELS: 0 costs next to nothing, 5 is ruin."""
    return len(LEVELS) if math.isnan(ratio) else sum(ratio >= bound for bound in LEVELS)


def domains_table(rows: Sequence[Chosen], title: str) -> Table:
    """Perplexities; its own kind of text is in bold."""
    table = Table(
        title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False
    )
    table.add_column("chosen on")
    table.add_column("by")
    names = [one.domain for one in rows[0].loss]
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_row("all experts", "", *(f"{one.before:.1f}" for one in rows[0].loss))
    for row in rows:
        cells = [
            Text(f"{one.after:.1f}", "bold" if one.domain == row.chosen_on else "")
            for one in row.loss
        ]
        table.add_row(row.chosen_on, row.method, *cells)
    return table
