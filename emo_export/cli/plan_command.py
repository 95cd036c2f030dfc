"""The command `plan`: its options and help; the work is in cli/plan.py."""

from __future__ import annotations

import click

from emo_export.cli import completing, target_names
from emo_export.cli.output import stdout
from emo_export.files.kv_cache import KV_CACHES


@click.command()
@click.argument("checkpoint", shell_complete=completing.folder)
@click.option(
    "--to",
    "specs",
    multiple=True,
    callback=target_names.check,
    shell_complete=completing.targets,
    metavar="SPEC",
    help="A target as in export; may be repeated.  [default: gguf:q8_0, q6_k, q4_k_m, q3_k_m, "
    "onnx:int8, int4]",
)
@click.option(
    "--keep",
    "keeps",
    multiple=True,
    metavar="K",
    help="Experts of each layer that stay, as export counts them: 16, 1/4, 25% or all; may be "
    "repeated.  [default: all, 1/2, 1/4, 1/8]",
)
@click.option(
    "--context", type=click.IntRange(1), metavar="N", help="Positions of KV cache.  [default: all]"
)
@click.option(
    "--kv-cache",
    type=click.Choice(KV_CACHES),
    help="Of the targets that can have it; the others keep theirs.  [default: f16 of GGUF, f32 of "
    "ONNX]",
)
@click.option(
    "--fit",
    shell_complete=completing.profiles,
    metavar="PROFILE",
    help="Choose for pi4-1gb, pi4-2gb, pi4-4gb, pi4-8gb, pi5-2gb, pi5-4gb, pi5-8gb, pi5-16gb, "
    "android-6gb, android-8gb or laptop-16gb: the most experts that fit, then the type with the "
    "most bytes.",
)
@click.option(
    "--time",
    "timed",
    is_flag=True,
    help="Measure this machine for some seconds, to tell how long the export takes.",
)
@click.option("--json", "as_json", is_flag=True, help="Print every figure as JSON.")
def plan(
    checkpoint: str,
    specs: tuple[str, ...],
    keeps: tuple[str, ...],
    context: int | None,
    kv_cache: str | None,
    fit: str | None,
    timed: bool,
    as_json: bool,
) -> None:
    """Tell what an export would make and need, before any work, from headers alone.

    CHECKPOINT is a folder or a Hugging Face id, of which no weights are fetched. Told are the bytes
    of each target at each count of experts kept, disk and memory of the export, and on a device the
    memory and the decode speed that its bandwidth allows at most. Exit 0, or 1 when --fit finds
    nothing that fits.

    \b
    Examples:
        emo-export plan examples/emo-nano
        emo-export plan examples/emo-nano --keep 1/2 --to gguf:q4_k_m --context 512
        emo-export plan examples/emo-nano --fit pi5-4gb
    """
    from emo_export.cli.plan import PlanOptions, run_plan

    options = PlanOptions(specs, keeps, context, kv_cache, fit, timed, as_json)
    run_plan(checkpoint, options, stdout())
