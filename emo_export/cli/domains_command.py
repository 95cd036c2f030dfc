"""The `domains` command: what experts chosen on one kind of text are worth on another."""

from __future__ import annotations

from pathlib import Path

import click

from emo_export.cli import completing
from emo_export.cli.choosing import FIELD, RESCALE, SEED
from emo_export.cli.numbers import TOKENS
from emo_export.cli.output import stdout
from emo_export.cli.progress import with_progress
from emo_export.selection.method import Method


@click.command()
@click.argument("checkpoint", shell_complete=completing.folder)
@click.option("--keep", required=True, metavar="K", help="Experts of each layer, as 8 or 25%.")
@click.option(
    "--calibration",
    type=click.Path(exists=True, path_type=Path),
    multiple=True,
    required=True,
    help="Files, each a kind of text to choose on, or a folder of such files.",
)
@click.option(
    "--calibration-tokens",
    default=8192,
    show_default=True,
    type=TOKENS,
    help="Of each kind.",
)
@FIELD
@click.option(
    "--method",
    "methods",
    type=click.Choice([method.value for method in Method]),
    multiple=True,
    default=(Method.ROUTER.value,),
    show_default=True,
    help="What experts are ranked by; may be repeated.",
)
@RESCALE
@SEED
@click.option(
    "--heldout",
    type=click.Path(exists=True, path_type=Path),
    multiple=True,
    help="Files, each a kind of text to judge on.  [default: the checkpoint's heldout/]",
)
@click.option("--heldout-tokens", default=4096, show_default=True, type=TOKENS)
@click.option("--torch-device", default="cpu", show_default=True, help="cpu or cuda.")
@click.option("--json", "as_json", is_flag=True, help="Print choices and figures as JSON.")
@click.option(
    "--html",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Also write the matrix as a page with a heat map.",
)
@with_progress
def domains(
    checkpoint: str,
    keep: str,
    calibration: tuple[Path, ...],
    calibration_tokens: int,
    text_field: str,
    methods: tuple[str, ...],
    rescale: bool,
    seed: int,
    heldout: tuple[Path, ...],
    heldout_tokens: int,
    torch_device: str,
    as_json: bool,
    html: Path | None,
) -> None:
    """Choose experts on each kind of text and judge them on each.

    All in one pass over the weights. A row for each kind of text and method, and one for all kinds
    together; a column for each kind of held-out text.

    \b
    Example:
        emo-export domains examples/emo-nano --keep 8 \\
            --calibration examples/emo-nano/calibration
    """
    from emo_export.cli.domains import run_domains
    from emo_export.jobs.options import DomainOptions
    from emo_export.selection.keep import Keep, Selection

    amount = Keep.parse(keep)
    selections = [Selection(amount, Method(name), seed, rescale) for name in methods]
    options = DomainOptions(
        calibration, calibration_tokens, seed, text_field, heldout, heldout_tokens, torch_device
    )
    run_domains(checkpoint, options, selections, stdout(), as_json, html)
