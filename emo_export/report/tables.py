"""Parity as a table that a person can read in a terminal of 80 columns."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table

from emo_export.parity.judge import Row, TargetReport

TITLE = "Parity with the reference"
LEGEND = (
    "against: dequantised = the reference on the weights as the format stores them, original = the "
    "float checkpoint; arithmetic: shipped = as the engine runs it, exact = with float "
    "activations; KL in nats per position; ties: positions whose routing hangs on a near tie, "
    "scored apart (rounding alone may choose another expert there)"
)


def tables(reports: Sequence[TargetReport]) -> list[Table]:
    """One table a target, one line a comparison."""
    return [_table(report) for report in reports]


def _table(report: TargetReport) -> Table:
    out = Table(
        title=f"{TITLE}: {report.target}",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        show_edge=False,
        padding=(0, 1),
        collapse_padding=True,
    )
    for heading in ("against", "arithmetic", "mode"):
        out.add_column(heading, no_wrap=True)
    for heading in ("KL mean", "KL max", "top-1", "ties", "ppl ×"):
        out.add_column(heading, justify="right", no_wrap=True)
    out.add_column("", no_wrap=True)
    for row in report.rows:
        out.add_row(*_cells(row))
    return out


def _cells(row: Row) -> list[str]:
    m = row.measured
    return [
        row.against,
        row.arithmetic,
        row.mode,
        f"{m.kl_mean:.1e}",
        f"{m.kl_max:.1e}",
        f"{m.top1:.1%}",
        f"{m.near_ties}/{m.positions}",
        "" if row.perplexity_ratio is None else f"{row.perplexity_ratio:.4f}",
        "pass" if row.passed else "FAIL",
    ]


def verdicts(reports: Sequence[TargetReport]) -> list[str]:
    """A line or two for each target: verdict, perplexity, greedy text, engine, failures."""
    lines = []
    for report in reports:
        judged = next(row for row in report.rows if row.perplexity_ratio is not None)
        lines.append(
            f"{report.target}: {'pass' if report.passed else 'FAIL'}; perplexity "
            f"{judged.perplexity:.2f}, {judged.perplexity_ratio:.4f} times the original's; "
            f"{_greedy(report)}; {report.engine['version']}, threads {report.engine['threads']}"
        )
        lines += [f"  {text}" for text in (*report.notes, *report.tokenizer_failures)]
        lines += [f"  {text}" for text in exceeded(report)]
    first = reports[0]
    lines.append(
        f"the judged positions use {first.experts_used} of {first.experts_routed} routed experts"
    )
    lines.append(f"perplexity over {first.heldout_tokens} tokens of {first.heldout_source}")
    return lines


def exceeded(report: TargetReport) -> list[str]:
    """A sentence for each limit that a comparison does not keep."""
    return [
        f"{row.against}, {row.arithmetic}, {row.mode}: {failure}"
        for row in report.rows
        for failure in row.failures
    ]


def _greedy(report: TargetReport) -> str:
    if report.greedy_difference is None:
        return f"greedy text identical for {report.greedy_steps} tokens"
    step = report.greedy_difference + 1
    return f"greedy text first differs at token {step} of {report.greedy_steps}"
