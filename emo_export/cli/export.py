"""The work of `export`: what it prints, around the job itself (emo_export/job.py)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console

from emo_export.base.install import CONVERT, need
from emo_export.cli.work import open_checkpoint, progress_steps, say
from emo_export.parity.result import as_json
from emo_export.report.sentences import check
from emo_export.report.text import show

if TYPE_CHECKING:
    from emo_export.job import ExportOptions
    from emo_export.model.importance import ImportanceMatrix

MOST_NAMED = 8


def run_export(
    source: str,
    output: Path,
    specs: Sequence[str],
    options: ExportOptions,
    out: Console,
    in_json: bool = False,
) -> None:
    """Export, print the parity table. Raises what the verdict calls for."""
    from emo_export.job import export_package
    from emo_export.text.tokenizer import why_no_tokenizer

    need(CONVERT, "convert", "export")
    options.check()
    checkpoint = open_checkpoint(source)
    if not (checkpoint.path / "tokenizer.json").is_file():
        why = why_no_tokenizer(checkpoint.path)
        say(f"warning: the result will take token ids, not text: {source} {why}")
    used: list[ImportanceMatrix] = []
    with progress_steps() as steps:
        made = export_package(checkpoint, output, specs, options, steps, used.append)
    for matrix in used:
        warn_unseen(matrix)
    total = sum(entry.bytes for entry in made.manifest.files)
    say(f"{output}: {len(made.manifest.files)} files, {total / 1e6:.1f} MB")
    if options.validate and options.golden:
        if in_json:
            click.echo(json.dumps(as_json(made.results), indent=2))
        else:
            show(made.results, out)
        check(made.results)
    elif in_json:
        click.echo(json.dumps({"passed": None, "targets": []}))


def warn_unseen(matrix: ImportanceMatrix) -> None:
    """Name the experts that the calibration text never reached."""
    unseen = list(dict.fromkeys((slot.layer, slot.expert) for slot in matrix.unseen()))
    if not unseen:
        return
    named = ", ".join(f"{expert} of layer {layer}" for layer, expert in unseen[:MOST_NAMED])
    more = f" and {len(unseen) - MOST_NAMED} more" if len(unseen) > MOST_NAMED else ""
    click.echo(
        f"warning: {len(unseen)} expert{'s' * (len(unseen) > 1)} saw no token of {matrix.source}: "
        f"quantised with even weights ({named}{more}); more text, or of more kinds, helps",
        err=True,
    )
