"""The options of `doctor`, and its help."""

from __future__ import annotations

import click

from emo_export.cli.output import stdout


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print the checks as JSON.")
def doctor(as_json: bool) -> None:
    """Show what this machine has, and lacks for what.

    \b
    Example:
        emo-export doctor
    """
    from emo_export.cli.doctor import run_doctor

    run_doctor(as_json, stdout())
