"""The work of `prune`: what it prints, around the job itself (emo_export/jobs/prune.py)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console

from emo_export.base.install import CONVERT, need
from emo_export.cli.command_line import command_line
from emo_export.cli.output import say
from emo_export.cli.progress import progress, suggest
from emo_export.cli.work import open_checkpoint, progress_steps
from emo_export.files.manifest import NAME as MANIFEST
from emo_export.report.pruning import loss_table, unsteady_warning
from emo_export.runtimes.ort.family import MODEL

if TYPE_CHECKING:
    from emo_export.jobs.options import PruneOptions


def is_package(path: Path) -> bool:
    """Whether a path is a file, an ONNX folder or a folder that export made."""
    return path.is_file() or any((path / name).is_file() for name in (MANIFEST, MODEL))


def run_prune(
    source: str,
    targets: Sequence[str],
    output: Path,
    options: PruneOptions,
    out: Console,
    in_json: bool = False,
) -> None:
    """Prune, and print what that costs."""
    need(CONVERT, "convert", "prune")
    from emo_export.jobs.prune import prune_checkpoint, prune_target

    if targets or is_package(Path(source)):
        with progress_steps() as steps:
            made = prune_target(Path(source), targets, output, options, steps, command_line())
    else:
        checkpoint = open_checkpoint(source)
        with progress_steps() as steps:
            made = prune_checkpoint(checkpoint, output, options, steps, command_line())
    warning = unsteady_warning(made.choice.layers)
    if warning:
        say(warning)
    if in_json:
        layers = {str(n): asdict(layer) for n, layer in made.choice.layers.items()}
        content = {
            "pruning": made.product.pruning,
            "loss": [asdict(one) for one in made.loss],
            "layers": layers,
        }
        click.echo(json.dumps(content, indent=2))
    elif made.loss:
        out.print(loss_table(made.loss))
    progress(f"{output}: {made.product.config.num_experts} experts a layer were kept")
    if in_json:
        return
    if is_package(output):
        suggest(["run", str(output), "Once upon a time"])
    else:
        suggest(["export", str(output), "-o", f"{output}-export", "--to", "gguf:q4_k_m"])
