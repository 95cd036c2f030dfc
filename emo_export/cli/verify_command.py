"""The `verify` command: whether files are the ones that were made."""

from __future__ import annotations

from pathlib import Path

import click

from emo_export.cli.numbers import SECONDS
from emo_export.cli.output import stdout


@click.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option(
    "--deep",
    is_flag=True,
    help="Also open each target with its engine, in a process of its own, and compare what it "
    "computes with golden.npz.",
)
@click.option(
    "--timeout",
    type=SECONDS,
    metavar="SECONDS",
    help="With --deep: end a target whose replay takes longer.  [default: none]",
)
@click.option(
    "--source",
    type=click.Path(path_type=Path),
    metavar="CHECKPOINT",
    help="Also check that this local checkpoint is the one that it was made of.",
)
@click.option("--json", "as_json", is_flag=True, help="Print what was found as JSON.")
def verify(
    path: Path, deep: bool, timeout: float | None, source: Path | None, as_json: bool
) -> None:
    """Check every byte against the manifest.

    PATH is a folder that export made, with one package or with those of domains, or what prune
    made. Where bytes of a GGUF file, of ONNX data or of safetensors differ, the tensor is named.
    Needs no engine, but for --deep. Exit code 0: all is as it was written; 1: something differs;
    2: there is no manifest that can be read.

    \b
    Example:
        emo-export verify out
    """
    from emo_export.cli.verify import run_verify

    if timeout is not None and not deep:
        raise click.UsageError("--timeout is for the engines of --deep")
    run_verify(path, deep, timeout, source, stdout(), as_json)
