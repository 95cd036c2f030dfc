"""The command `compare`; its work is in cli/compare.py."""

from __future__ import annotations

from pathlib import Path

import click

from emo_export.cli.only_target import ONLY_TARGET
from emo_export.cli.output import stdout


@click.command()
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path))
@ONLY_TARGET
@click.option(
    "--speed",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="What `bench --json` printed of these packages on one machine.",
)
@click.option("--bench", "measures", is_flag=True, help="Measure the speed now, on this machine.")
@click.option(
    "--output",
    "-o",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Draw it: .html (with the table) or .svg.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
def compare(
    paths: tuple[Path, ...],
    only: tuple[str, ...],
    speed: Path | None,
    measures: bool,
    output: Path | None,
    as_json: bool,
) -> None:
    """Draw what targets lose (KL) against bytes read per token and against speed.

    A PATH is a folder that export made. KL is that of its parity.json.

    \b
    Example:
        emo-export compare out-8 out-16 --bench -o compare.html
    """
    from emo_export.cli.compare import run_compare

    run_compare(paths, only, speed, measures, output, as_json, stdout())
