"""What leaving experts out costs, as a table and in words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Protocol

from rich.table import Table

from emo_export.parity.pruning import PruningLoss


class Chosen(Protocol):
    """What was chosen in a layer."""

    @property
    def kept(self) -> tuple[int, ...]:
        """The experts."""

    @property
    def unsteady(self) -> float:
        """How many of them another half of the text would replace."""


UNSTEADY = 0.15
"""Of the kept experts; beyond it more text is worth its time."""


def loss_table(loss: Sequence[PruningLoss]) -> Table:
    """Perplexity with all experts and with those kept, by kind of held-out text."""
    table = Table(title="What pruning costs on held-out text", title_justify="left", box=None)
    table.add_column("text")
    for name in ("tokens", "all experts", "kept", "×"):
        table.add_column(name, justify="right")
    for one in loss:
        table.add_row(
            one.domain,
            str(one.tokens),
            f"{one.full:.4g}",
            f"{one.pruned:.4g}",
            f"{one.ratio:.3f} {interval(one.ratio, one.stderr)}",
        )
    return table


def interval(ratio: float, stderr: float) -> str:
    """The standard error of a ratio whose logarithm has `stderr`."""
    return "" if math.isnan(stderr) else f"± {ratio * stderr:.3f}"


def unsteady_warning(layers: Mapping[int, Chosen]) -> str:
    """A sentence where the text is too short to rank experts; empty where it is not."""
    shares = {n: one.unsteady / len(one.kept) for n, one in layers.items() if one.kept}
    worst = max(shares, key=lambda n: -1.0 if math.isnan(shares[n]) else shares[n], default=None)
    if worst is None or math.isnan(shares[worst]):
        return (
            "warning: one sequence of text cannot tell how steady the choice is" if shares else ""
        )
    if shares[worst] <= UNSTEADY:
        return ""
    kept, changed = len(layers[worst].kept), layers[worst].unsteady
    mean = sum(one.unsteady for one in layers.values()) / len(layers)
    return (
        f"warning: the calibration text is short for ranking experts: two halves of it would keep "
        f"different ones, {changed:.1f} of {kept} in layer {worst}, {mean:.1f} a layer on average; "
        "more text of the same kind makes the choice steadier"
    )
