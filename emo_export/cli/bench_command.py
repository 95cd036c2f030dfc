"""The command `bench`, as `cli` registers it; its work is in cli_bench."""

from __future__ import annotations

from pathlib import Path

import click

from emo_export.cli.numbers import SECONDS
from emo_export.cli.only_target import ONLY_TARGET
from emo_export.cli.output import stdout
from emo_export.cli.progress import with_progress
from emo_export.files.kv_cache import KV_CACHES


@click.command()
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path))
@ONLY_TARGET
@click.option(
    "--threads", type=click.IntRange(1), help="[default: physical cores; 1 for small models]"
)
@click.option(
    "--kv-cache", type=click.Choice(KV_CACHES), help="The type of keys and values, as of run."
)
@click.option("--prefill", default=512, show_default=True, type=click.IntRange(1), help="Tokens.")
@click.option("--decode", default=64, show_default=True, type=click.IntRange(1), help="Tokens.")
@click.option(
    "--depth",
    default=32,
    show_default=True,
    type=click.IntRange(1),
    help="Tokens in the KV cache when decode begins.",
)
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(1))
@click.option(
    "--timeout",
    type=SECONDS,
    metavar="SECONDS",
    help="End an engine that does not answer in so long.  [default: 3600]",
)
@click.option(
    "--olmoe-bf16",
    type=click.Path(exists=True, path_type=Path),
    metavar="CHECKPOINT",
    help="Also an OLMoE of this checkpoint's (or config.json's) shape in transformers, with random "
    "bfloat16 weights: what Hugging Face does on this machine.",
)
@click.option(
    "--one-at-a-time",
    is_flag=True,
    help="Open each model anew in every round.  [default: where memory is short]",
)
@click.option(
    "--html",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Also write a page with a picture of the speeds.",
)
@click.option("--json", "as_json", is_flag=True, help="Print every figure as JSON.")
@with_progress
def bench(
    paths: tuple[Path, ...],
    only: tuple[str, ...],
    threads: int | None,
    kv_cache: str | None,
    prefill: int,
    decode: int,
    depth: int,
    rounds: int,
    timeout: float | None,
    olmoe_bf16: Path | None,
    one_at_a_time: bool,
    as_json: bool,
    html: Path | None,
) -> None:
    """Measure speed and memory, and the share of this machine's bandwidth that decode reaches.

    A PATH is a folder that export made (all its targets), a .gguf file or an ONNX folder. Models
    take turns, each in a process of its own; the figures are medians of the rounds.

    \b
    Example:
        emo-export bench out --rounds 5
    """
    from emo_export.cli.bench import BenchOptions, run_bench

    options = BenchOptions(
        only,
        threads,
        kv_cache,
        prefill,
        decode,
        depth,
        rounds,
        timeout,
        olmoe_bf16,
        one_at_a_time,
        as_json,
        html,
    )
    run_bench(paths, options, stdout())
