"""Targets of several packages beside each other: quality, bytes read per token, speed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

from emo_export.parity.estimates import Interval
from emo_export.parity.result import without_nan

KL_UNIT = "KL divergence (nats)"
LEGEND = (
    "KL: mean, in nats, of the float model that the package was made of and what the engine "
    "computes; below it the interval of 95% where it is known. perplexity: times that of the model "
    "of all experts, on held-out text. read: weights and KV cache of a decode step."
)


@dataclass(frozen=True)
class Speed:
    """Decoded tokens per second: the median of the rounds, the least and the most."""

    median: float
    least: float
    most: float


@dataclass(frozen=True)
class Compared:
    """One target. `kl` is None where it was not judged, `speed` where it was not measured.

    `ratio` is its perplexity times that of the model of all experts; `heldout` says on which text.
    `bytes` are those on disk, `read` those of a decode step.
    """

    package: str
    target: str
    kl: float | None
    interval: Interval | None
    ratio: float | None
    heldout: str
    pruned: bool
    bytes: int
    read: float
    speed: Speed | None


def as_json(rows: Sequence[Compared], positions: float) -> dict[str, Any]:
    """What `compare --json` prints; a figure that is not known is null."""
    return {
        "positions": positions,
        "targets": [without_nan(asdict(row)) for row in rows],
        "notes": notes(rows),
    }


def notes(rows: Sequence[Compared]) -> list[str]:
    """What one has to know before figures are held against each other."""
    found = []
    if len({row.pruned for row in rows}) > 1 or len({r.package for r in rows if r.pruned}) > 1:
        found.append(
            "KL is against the float model of the experts that a package keeps, so it does not "
            "have what pruning costs: with few experts it may be lowest. Perplexity, times that "
            "of all experts, has it"
        )
    texts = sorted({row.heldout for row in rows if row.ratio is not None})
    if len(texts) > 1:
        found.append("the packages were judged on different held-out texts: " + "; ".join(texts))
    if lacking := [f"{row.package} {row.target}" for row in rows if row.kl is None]:
        found.append(f"without KL, and not drawn: {', '.join(lacking)} (emo-export validate)")
    slow = [f"{row.package} {row.target}" for row in rows if row.speed is None]
    if slow and len(slow) < len(rows):
        found.append(f"without a measured speed: {', '.join(slow)}")
    return found


def cells(row: Compared) -> tuple[str, ...]:
    """The figures of the table as text; a second line has their range."""
    kl = "not judged" if row.kl is None else f"{row.kl:.5f}"
    if row.interval is not None:
        kl += f"\n{row.interval.low:.5f}–{row.interval.high:.5f}"
    speed = "–"
    if row.speed is not None:
        speed = f"{row.speed.median:.1f}\n{row.speed.least:.1f}–{row.speed.most:.1f}"
    ratio = "–" if row.ratio is None else f"× {row.ratio:.4f}"
    return kl, ratio, f"{row.bytes / 1e6:.1f}", f"{row.read / 1e6:.2f}", speed


HEADINGS = ("KL\nnats", "perplexity", "size\nMB", "read\nMB/token", "decode\ntok/s")


def compare_table(rows: Sequence[Compared]) -> Table:
    """A line for each target, in the order of the packages."""
    table = Table(box=None, pad_edge=False)
    table.add_column("package", overflow="fold")
    table.add_column("target", no_wrap=True)
    for heading in HEADINGS:
        table.add_column(heading, justify="right", no_wrap=True)
    before = ""
    for row in rows:
        table.add_row("" if row.package == before else row.package, row.target, *cells(row))
        before = row.package
    return table
