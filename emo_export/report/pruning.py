"""What leaving experts out costs, as a table and in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from rich import box
from rich.table import Table

from emo_export.parity.losses import Loss, Losses


class Layer(Protocol):
    """What was chosen in a layer."""

    @property
    def kept(self) -> tuple[int, ...]:
        """The experts."""

    @property
    def unsteady(self) -> float | None:
        """How many of them another half of the text would replace."""


UNSTEADY = 0.15
"""Of the kept experts; beyond it more text is worth its time."""


def loss_table(loss: Sequence[Loss]) -> Table:
    """Perplexity with all experts and with those kept, by kind of held-out text."""
    table = Table(
        title="What pruning costs on held-out text",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        show_edge=False,
    )
    table.add_column("text")
    for name in ("tokens", "all experts", "kept", "×"):
        table.add_column(name, justify="right")
    for one in loss:
        table.add_row(
            one.domain,
            str(one.tokens),
            f"{one.before:.4g}",
            f"{one.after:.4g}",
            times(one),
        )
    return table


def times(loss: Loss) -> str:
    """A ratio with its standard error, as `1.034 ± 0.011`."""
    error = "" if loss.stderr is None else f" ± {loss.ratio * loss.stderr:.3f}"
    return f"{loss.ratio:.3f}{error}"


class Tried(Protocol):
    """A count of experts that was tried."""

    @property
    def keep(self) -> int:
        """Of each layer."""

    @property
    def loss(self) -> Loss:
        """What it costs."""


def keep_table(tried: Sequence[Tried], judged_on: str, limit: float, keep: int | None) -> Table:
    """The counts that were tried, and the fewest within the limit."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for name in ("kept", f"perplexity on {judged_on}", f"× all, at most {1 + limit:.3f}"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("")
    for one in tried:
        mark = "chosen" if one.keep == keep else ""
        table.add_row(str(one.keep), f"{one.loss.after:.4g}", times(one.loss), mark)
    return table


def nothing_fits(tried: Sequence[Tried], limit: float) -> str:
    """That no count is within the limit, and what to do."""
    best = min(tried, key=lambda one: one.loss.ratio)
    return (
        f"--keep auto: no count that was tried is within {limit:.1%} of all experts' perplexity; "
        f"{best.keep} experts have {times(best.loss)} times it: allow more with --loss, give more "
        "calibration text, or held-out text of its kind with --heldout"
    )


STEPS = ("pruning", "bits", "both")


def steps_of(losses: Losses) -> list[tuple[str, str, str, str]]:
    """A line for each kind of text: its name, then what pruning, bits and both cost.

    Empty where nothing was pruned on the way: then bits are all that there is.
    """
    lines = zip(losses.pruning, losses.bits, losses.both, strict=False)
    return [(one.domain, times(one), times(bits), times(both)) for one, bits, both in lines]


def losses_table(target: str, losses: Losses) -> Table:
    """The three figures, told apart, for a terminal."""
    table = Table(
        title=f"Perplexity times that of the model before: {target}",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        show_edge=False,
    )
    table.add_column("text")
    for name in STEPS:
        table.add_column(name, justify="right", no_wrap=True)
    for line in steps_of(losses):
        table.add_row(*line)
    return table


def unsteady_warning(layers: Mapping[int, Layer]) -> str:
    """A sentence where the text is too short to rank experts; empty where it is not."""
    known = {n: one.unsteady for n, one in layers.items() if one.unsteady is not None}
    if not known:
        return (
            "warning: one sequence of text cannot tell how steady the choice is" if layers else ""
        )
    worst = max(known, key=lambda n: known[n] / len(layers[n].kept))
    kept = len(layers[worst].kept)
    if known[worst] <= UNSTEADY * kept:
        return ""
    return (
        "warning: the calibration text is short for ranking experts: two halves of it would keep "
        f"different ones, {known[worst]:.1f} of {kept} in layer {worst}, "
        f"{sum(known.values()) / len(known):.1f} a layer on average; more text of the same kind "
        "makes the choice steadier"
    )
