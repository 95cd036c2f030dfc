"""Parity as a table that a person can read."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from emo_export.parity import ORIGINAL
from emo_export.validate import Row, TargetReport

AGAINST = {"dequantised": "dequantised weights", ORIGINAL: "float original"}


def table(reports: Sequence[TargetReport]) -> Table:
    """One line a comparison."""
    out = Table(title="Parity with the reference (KL in nats per position)", title_justify="left")
    for heading in ("target", "compared with", "activations", "mode"):
        out.add_column(heading, no_wrap=True)
    for heading in ("KL mean", "KL max", "top-1", "max abs", "near ties", "ppl ratio"):
        out.add_column(heading, justify="right", no_wrap=True)
    out.add_column("verdict", no_wrap=True)
    for report in reports:
        for row in report.rows:
            out.add_row(*_cells(row, report))
        out.add_section()
    return out


def _cells(row: Row, report: TargetReport) -> list[str]:
    m = row.measured
    activations = "as shipped" if row.arithmetic == "shipped" else "float"
    return [
        row.target,
        AGAINST[row.against],
        activations,
        row.mode,
        f"{m.kl_mean:.1e}",
        f"{m.kl_max:.1e}",
        f"{m.top1:.1%}",
        f"{m.max_abs:.1e}",
        f"{m.near_ties}/{m.positions}",
        "" if row.perplexity_ratio is None else f"{row.perplexity_ratio:.4f}",
        "pass" if row.passed else "FAIL",
    ]


def remarks(reports: Sequence[TargetReport]) -> list[str]:
    """What the table doesn't say: greedy text, engines, ties, failures, what was left out."""
    lines = []
    for report in reports:
        step = report.greedy_difference
        greedy = (
            f"greedy text equals the original's for all {report.greedy_steps} tokens"
            if step is None
            else f"greedy text first differs from the original's at token {step + 1} "
            f"of {report.greedy_steps}"
        )
        engine = ", ".join(f"{key} {value}" for key, value in report.engine.items() if value)
        perplexity = next(row.perplexity for row in report.rows if row.perplexity is not None)
        lines.append(
            f"{report.target}: {greedy}; perplexity {perplexity:.2f} over "
            f"{report.heldout_tokens} tokens of {report.heldout_source}"
        )
        lines.append(f"{report.target}: {engine}")
        lines += [f"{report.target}: {note}" for note in report.notes]
        lines += [
            f"{report.target}: FAIL against the {AGAINST[row.against]}, {row.mode}: {failure}"
            for row in report.rows
            for failure in row.failures
        ]
    lines.append(
        "near ties: positions where the router's choice hangs on less than the tolerance's `tie`; "
        "they are scored apart, since rounding alone may choose another expert there"
    )
    return lines
