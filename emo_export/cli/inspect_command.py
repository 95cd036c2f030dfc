"""The options of `inspect`, and its help."""

from __future__ import annotations

import click

from emo_export.cli.output import stdout


@click.command()
@click.argument("path")
@click.option("--json", "as_json", is_flag=True, help="Print the facts as JSON.")
def inspect(path: str, as_json: bool) -> None:
    """Tell what a checkpoint or an exported model is.

    \b
    Example:
        emo-export inspect examples/emo-nano
    """
    from emo_export.cli.inspect import run_inspect

    run_inspect(path, as_json, stdout())
