"""The `sweep` command: its options and help; the work is in cli/sweep.py."""

from __future__ import annotations

from pathlib import Path

import click

from emo_export.cli.output import stdout


@click.command()
@click.argument("spec", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    help="Folder of the variants; what an earlier run of the same spec made there is kept.",
)
@click.option(
    "--on",
    "where",
    default="local",
    show_default=True,
    metavar="PLACE",
    help="local: processes of this machine. dask://HOST:PORT: the workers of a Dask scheduler, "
    "which see the same files under the same names.",
)
@click.option(
    "--workers",
    type=click.IntRange(1),
    metavar="N",
    help="Processes of --on local; each needs the memory of an export.  [default: 1]",
)
@click.option("--json", "as_json", is_flag=True, help="Print what became of each as JSON.")
def sweep(spec: Path, output: Path, where: str, workers: int | None, as_json: bool) -> None:
    """Export a checkpoint in many variants, and compare them.

    SPEC is a TOML file: a checkpoint, domains with calibration and held-out text, counts of experts
    to keep, methods and targets. Each combination becomes a folder of OUTPUT that `export` would
    make; sweep.json and sweep.html compare them. The same command again goes on after an
    interrupt, and makes those anew of which an input, an option or a version has changed.

    \b
    Example:
        emo-export sweep examples/emo-nano/sweep.toml -o variants --workers 2
    """
    from emo_export.cli.sweep import run_sweep

    run_sweep(spec, output, where, workers, stdout(), as_json)
