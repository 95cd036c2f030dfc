"""The option by which a command takes some targets of a package."""

from __future__ import annotations

import click

from emo_export.cli import completing

ONLY_TARGET = click.option(
    "--target",
    "only",
    multiple=True,
    metavar="SPEC",
    help="Only this target.",
    shell_complete=completing.package_targets,
)
