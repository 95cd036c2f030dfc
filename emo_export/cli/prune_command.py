"""The `prune` command: a checkpoint with the experts that a text needs."""

from __future__ import annotations

from pathlib import Path

import click

from emo_export.cli.output import stdout
from emo_export.selection.method import Method

METHOD = click.option(
    "--method",
    type=click.Choice([method.value for method in Method]),
    default=Method.ROUTER.value,
    show_default=True,
    help="What experts are ranked by: router (mean router probability), easy-ep (router weight x "
    "norm of the output x how much the block turns the token), reap (router weight x norm, "
    "over the tokens that chose it), or random.",
)
SEED = click.option(
    "--seed", default=0, show_default=True, type=click.IntRange(0), help="Of all that is drawn."
)
FIELD = click.option(
    "--field",
    "text_field",
    default="text",
    show_default=True,
    metavar="NAME",
    help="Of each line of .jsonl that --calibration or --heldout names.",
)


@click.command()
@click.argument("checkpoint")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="New folder.")
@click.option(
    "--keep",
    required=True,
    metavar="K",
    help="Experts of each layer, as 8 or 25%; those that every token uses always stay, and count.",
)
@click.option(
    "--calibration",
    type=click.Path(exists=True, allow_dash=True, path_type=Path),
    multiple=True,
    required=True,
    help='Text to choose the experts for: any text file, .jsonl with "text", a folder, or -.',
)
@click.option("--calibration-tokens", default=32768, show_default=True, type=click.IntRange(2))
@FIELD
@METHOD
@SEED
@click.option(
    "--heldout",
    type=click.Path(exists=True, path_type=Path),
    multiple=True,
    help="Text on which the loss is measured, as in export.  [default: the checkpoint's heldout/]",
)
@click.option("--heldout-tokens", default=4096, show_default=True, type=click.IntRange(2))
@click.option("--max-shard-size", default="5GB", show_default=True, metavar="SIZE")
@click.option("--no-loss", is_flag=True, help="Do not measure what the pruning costs.")
@click.option("--torch-device", default="cpu", show_default=True, help="cpu or cuda.")
@click.option("--json", "as_json", is_flag=True, help="Print what was kept and lost as JSON.")
def prune(
    checkpoint: str,
    output: Path,
    keep: str,
    calibration: tuple[Path, ...],
    calibration_tokens: int,
    text_field: str,
    method: str,
    seed: int,
    heldout: tuple[Path, ...],
    heldout_tokens: int,
    max_shard_size: str,
    no_loss: bool,
    torch_device: str,
    as_json: bool,
) -> None:
    """Write a checkpoint with the experts that a text needs.

    CHECKPOINT is a folder or a Hugging Face id. The result is a Hugging Face checkpoint with
    pruning_metadata.json; the published implementation loads it, and so does `export`.

    \b
    Example:
        emo-export prune examples/emo-nano -o nano-c --keep 8 \\
            --calibration examples/emo-nano/calibration/c.jsonl
    """
    from emo_export.cli.prune import run_prune
    from emo_export.job import PruneOptions
    from emo_export.measuring import CalibrationText
    from emo_export.selection.keep import Keep, Selection

    options = PruneOptions(
        Selection(Keep.parse(keep), Method(method), seed),
        CalibrationText(calibration, calibration_tokens, seed, text_field),
        heldout,
        heldout_tokens,
        size_of_text(max_shard_size),
        not no_loss,
        torch_device,
    )
    run_prune(checkpoint, output, options, stdout(), as_json)


def size_of_text(text: str) -> int:
    """`5GB`, `300MB` or a number of bytes."""
    from emo_export.errors import EmoExportError

    units = {"KB": 1000, "MB": 1000**2, "GB": 1000**3}
    number, unit = text.strip().upper(), 1
    if number[-2:] in units:
        number, unit = number[:-2], units[number[-2:]]
    if not number.isdecimal() or int(number) == 0:
        raise EmoExportError(f"--max-shard-size {text}: expected a size, as 5GB or 300MB")
    return int(number) * unit
