"""The options of `inspect`, and its help."""

from __future__ import annotations

from pathlib import Path

import click

from emo_export.cli.numbers import TOKENS
from emo_export.cli.output import stdout


@click.command()
@click.argument("path")
@click.option(
    "--plot",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Also write a page (HTML) that draws which experts text uses: of a package the held-out "
    "text that it was judged on, of a checkpoint that of --calibration.",
)
@click.option(
    "--calibration",
    type=click.Path(exists=True, path_type=Path),
    multiple=True,
    help="For --plot of a checkpoint: files, each a kind of text, or a folder of such files.",
)
@click.option(
    "--calibration-tokens",
    default=4096,
    show_default=True,
    type=TOKENS,
    help="Of all kinds together.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the facts as JSON.")
def inspect(
    path: str,
    plot: Path | None,
    calibration: tuple[Path, ...],
    calibration_tokens: int,
    as_json: bool,
) -> None:
    """Tell what a checkpoint or an exported model is.

    \b
    Example:
        emo-export inspect examples/emo-nano
        emo-export inspect out --plot experts.html
    """
    from emo_export.cli.inspect import run_inspect

    run_inspect(path, plot, calibration, calibration_tokens, as_json, stdout())
