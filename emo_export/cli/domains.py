"""The work of `domains`: what it prints, around the job itself (emo_export/jobs/domains.py)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console

from emo_export.base.install import CONVERT, need
from emo_export.cli.progress import progress
from emo_export.cli.work import open_checkpoint, progress_steps
from emo_export.report.domains import domains_table
from emo_export.report.html import domains as domains_page

if TYPE_CHECKING:
    from emo_export.jobs.options import DomainOptions
    from emo_export.selection.keep import Selection


def run_domains(
    source: str,
    options: DomainOptions,
    selections: Sequence[Selection],
    out: Console,
    in_json: bool,
    html: Path | None,
) -> None:
    """Choose on each kind of text, judge on each, print the matrix."""
    need(CONVERT, "convert", "domains")
    from emo_export.jobs.domains import judge_domains

    if html is not None:
        domains_page.check_writable(html)
    checkpoint = open_checkpoint(source)
    with progress_steps() as steps:
        rows = judge_domains(checkpoint, options, selections, steps)
    if html is not None:
        domains_page.write(html, checkpoint.path.resolve().name, rows)
        progress(f"wrote {html}")
    if in_json:
        click.echo(json.dumps({"rows": [asdict(row) for row in rows]}, indent=2))
        return
    keep = rows[0].keep
    title = f"Perplexity on held-out text with {keep} experts a layer"
    out.print(domains_table(rows, title))
