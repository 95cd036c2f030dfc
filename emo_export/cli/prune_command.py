"""The `prune` command: a checkpoint or a package with the experts that a text needs."""

from __future__ import annotations

from pathlib import Path

import click

from emo_export.cli import completing
from emo_export.cli.choosing import FIELD, LOSS, METHOD, RESCALE, SEED, wanted
from emo_export.cli.numbers import TOKENS
from emo_export.cli.output import stdout
from emo_export.cli.progress import with_progress
from emo_export.selection.method import Method


@click.command()
@click.argument("path", shell_complete=completing.place)
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="New.")
@click.option(
    "--target",
    "targets",
    shell_complete=completing.package_targets,
    multiple=True,
    metavar="NAME",
    help="Of an exported folder with several: the one to prune, as gguf:q4_0.",
)
@click.option(
    "--keep",
    required=True,
    metavar="K",
    help="Experts of each layer, as 8 or 25%; those that every token uses always stay, and count. "
    "auto: the fewest within --loss.",
)
@LOSS
@click.option(
    "--calibration",
    type=click.Path(exists=True, allow_dash=True, path_type=Path),
    multiple=True,
    required=True,
    help='Text to choose the experts for: any text file, .jsonl with "text", a folder, or -.',
)
@click.option("--calibration-tokens", default=32768, show_default=True, type=TOKENS)
@FIELD
@METHOD
@RESCALE
@SEED
@click.option(
    "--heldout",
    type=click.Path(exists=True, path_type=Path),
    multiple=True,
    help="Text on which the loss is measured, as in export.  [default: the checkpoint's heldout/]",
)
@click.option("--heldout-tokens", default=4096, show_default=True, type=TOKENS)
@click.option("--max-shard-size", metavar="SIZE", help="Of a checkpoint's files.  [default: 5GB]")
@click.option("--overwrite", is_flag=True, help="Replace what prune made before.")
@click.option("--no-resume", is_flag=True, help="Start anew where an earlier run was interrupted.")
@click.option("--no-loss", is_flag=True, help="Do not measure what the pruning costs.")
@click.option("--torch-device", default="cpu", show_default=True, help="cpu or cuda.")
@click.option("--json", "as_json", is_flag=True, help="Print what was kept and lost as JSON.")
@with_progress
def prune(
    path: str,
    output: Path,
    targets: tuple[str, ...],
    keep: str,
    loss: str | None,
    calibration: tuple[Path, ...],
    calibration_tokens: int,
    text_field: str,
    method: str,
    rescale: bool,
    seed: int,
    heldout: tuple[Path, ...],
    heldout_tokens: int,
    max_shard_size: str | None,
    overwrite: bool,
    no_resume: bool,
    no_loss: bool,
    torch_device: str,
    as_json: bool,
) -> None:
    """Write a checkpoint or package with the experts that a text needs.

    PATH is a checkpoint (a folder or a Hugging Face id), and so is the result, with
    pruning_metadata.json; the published implementation loads it, and so does `export`. Or it is a
    .gguf file, an ONNX folder, or a folder that export made: its experts are chosen by its own
    weights, and copied byte for byte into a new .gguf file or ONNX folder.

    \b
    Example:
        emo-export prune examples/emo-nano -o nano-c --keep 8 \\
            --calibration examples/emo-nano/calibration/c.jsonl
        emo-export prune model-Q4_K_M.gguf -o small.gguf --keep 8 --calibration notes.txt
    """
    from emo_export.cli.prune import is_package, run_prune
    from emo_export.errors import EmoExportError
    from emo_export.jobs.options import PruneOptions
    from emo_export.measuring import CalibrationText

    if max_shard_size is not None and (targets or is_package(Path(path))):
        raise EmoExportError("--max-shard-size is for checkpoints; a package is not split")
    options = PruneOptions(
        wanted(keep, loss, Method(method), seed, rescale),
        CalibrationText(calibration, calibration_tokens, seed, text_field),
        heldout,
        heldout_tokens,
        size_of_text(max_shard_size or "5GB"),
        not no_loss,
        not no_resume,
        torch_device,
        overwrite,
    )
    run_prune(path, targets, output, options, stdout(), as_json)


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
