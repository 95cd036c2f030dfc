"""What ONNX types, blocks and the types of single parts cost and buy on emo-nano.

    python -m tests.bench.onnx_recipes [--tokens 6000] [--json]

Each row is an export of emo-nano, judged on held-out text beside the float original twice: the
weights alone, and as shipped, with activations rounded to int8. Its speed is that of decoding, of
all rows in turn, beside the first; emo-nano fits into a core's cache, so that it tells what the
operators cost, not what memory does: `emo-export bench` on a large model does that. Two GGUF types
stand at the end for comparison.
"""

from __future__ import annotations

import json
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from emo_export.interfaces import Runtime
from emo_export.runtimes.families import family_at
from emo_export.runtimes.opening import open_runtime
from emo_export.runtimes.package import chosen_targets
from tests.bench.quality import (
    Original,
    Quality,
    export,
    measure,
    measure_exact,
    megabytes,
    original,
    workspace,
)
from tests.kit.paths import NANO

CALIBRATED = ("--calibration", str(NANO / "calibration"))
FOURS = ("attention", "shared_expert", "head", "embed")
ROWS: dict[str, tuple[str, ...]] = {
    "int4": ("onnx:int4",),
    "int4, block 64": ("onnx:int4", "--block-size", "64"),
    "int4, block 32": ("onnx:int4", "--block-size", "32"),
    **{f"int4, {part} int4": ("onnx:int4", "--tensor-type", f"{part}=int4") for part in FOURS},
    "int4, but head int8": (
        "onnx:int4",
        *(word for part in FOURS[:2] for word in ("--tensor-type", f"{part}=int4")),
    ),
    "int4 everywhere": (
        "onnx:int4",
        *(word for part in FOURS for word in ("--tensor-type", f"{part}=int4")),
    ),
    "int4, calibrated": ("onnx:int4", *CALIBRATED),
    "int2": ("onnx:int2",),
    "int2, calibrated": ("onnx:int2", *CALIBRATED),
    "int2, block 32, calibrated": ("onnx:int2", "--block-size", "32", *CALIBRATED),
    "int2, block 64": ("onnx:int2", "--block-size", "64"),
    "int2, block 32": ("onnx:int2", "--block-size", "32"),
    "int8": ("onnx:int8",),
    "int8, block 32": ("onnx:int8", "--block-size", "32"),
    "f32": ("onnx:f32",),
    "int4@if": ("onnx:int4@if",),
    "int8@standard": ("onnx:int8@standard",),
    "gguf q4_0": ("gguf:q4_0",),
    "gguf q8_0": ("gguf:q8_0",),
}
STEPS, ROUNDS = 48, 7


@dataclass(frozen=True)
class Row:
    """One export: MB of weights, MB that a decoded token reads, quality, speed beside the first."""

    name: str
    megabytes: float
    megabytes_per_token: float
    weights: Quality
    shipped: Quality
    speed: float


@click.command()
@click.option("--tokens", default=6000, show_default=True, help="Of held-out text.")
@click.option("--json", "as_json", is_flag=True)
def main(tokens: int, as_json: bool) -> None:
    """Measure ONNX exports of emo-nano."""
    with workspace("onnx-recipes") as folder:
        paths = {}
        for name, (spec, *options) in ROWS.items():
            export(folder / name, "--to", spec, *options)
            place, targets = chosen_targets(folder / name)
            paths[name] = place / targets[spec].path
        _say(f"{len(paths)} exports; now the float original")
        reference = original(tokens)
        speeds = _speeds(paths)
        rows = [_row(name, path, reference, speeds[name]) for name, path in paths.items()]
    if as_json:
        click.echo(json.dumps({"tokens": reference.tokens, "rows": [asdict(row) for row in rows]}))
    else:
        _show(rows, reference.tokens)


def _row(name: str, path: Path, reference: Original, speed: float) -> Row:
    shipped = measure(path, reference)
    weights = shipped if name == "f32" else measure_exact(path, reference)
    _say(f"{name}: KL {shipped.kl:.5f}, of the weights alone {weights.kl:.5f}")
    read = family_at(path).per_token(path).weights / 1e6
    return Row(name, megabytes(path), read, weights, shipped, speed)


def _speeds(paths: dict[str, Path]) -> dict[str, float]:
    """Median decode speed over rounds in which each takes its turn, relative to the first."""
    runtimes = {name: open_runtime(path, 1) for name, path in paths.items()}
    seconds: dict[str, list[float]] = {name: [] for name in paths}
    for _ in range(ROUNDS):
        for name, runtime in runtimes.items():
            seconds[name].append(_decode(runtime))
    for runtime in runtimes.values():
        runtime.close()
    first = statistics.median(next(iter(seconds.values())))
    return {name: first / statistics.median(times) for name, times in seconds.items()}


def _decode(runtime: Runtime) -> float:
    ids = np.random.default_rng(1).integers(0, runtime.vocab_size, STEPS)
    runtime.reset()
    runtime.forward(ids[:8], last=True)
    start = time.perf_counter()
    for token in ids:
        runtime.forward(np.array([token]), last=True)
    return time.perf_counter() - start


def _show(rows: list[Row], tokens: int) -> None:
    title = f"ONNX exports of emo-nano, {tokens} held-out tokens"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("export")
    for column in ("MB", "MB/token", "KL weights", "KL shipped", "top-1", "ppl", "speed"):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(
            row.name,
            f"{row.megabytes:.2f}",
            f"{row.megabytes_per_token:.2f}",
            f"{row.weights.kl:.5f}",
            f"{row.shipped.kl:.5f}",
            f"{row.shipped.top1:.1%}",
            f"{row.shipped.perplexity_ratio:.4f}",
            f"{row.speed:.2f}",
        )
    out = Console(width=100, highlight=False)
    out.print(table)
    out.print(
        "MB: weights (GGUF: the file). MB/token: weights that a decoded token reads. KL: mean in\n"
        "nats from the float original; shipped: with the engine's own arithmetic; top-1 and\n"
        "perplexity ratio as shipped. speed: decoding, beside the first row."
    )


def _say(text: str) -> None:
    click.echo(text, err=True)


if __name__ == "__main__":
    main()
