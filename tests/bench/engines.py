"""`emo-export bench` beside the real llama-bench, built for this CPU, in turns.

    python -m tests.bench.engines OUT/onnx-int4 OUT/model-Q4_0.gguf [--rounds 5] [--threads 2]

The llama.cpp of the xllamacpp wheel, which `emo-export bench` times, is built for AVX2. Debian's
llama-bench (tests/kit/llama_tools.py) picks the best of its builds for the machine: it says which.
ONNX folders are timed by `emo-export bench`, GGUF files by llama-bench with our settings.
"""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
from pathlib import Path

import click

from emo_export.base.threads import physical_cores
from tests.kit.llama_tools import tools

PREFILL, DECODE, DEPTH = 512, 64, 32


@click.command()
@click.argument("paths", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--rounds", default=5, show_default=True, type=click.IntRange(1))
@click.option("--threads", default=physical_cores, type=click.IntRange(1))
def main(paths: tuple[Path, ...], rounds: int, threads: int) -> None:
    """Time every path once a round; print medians and the first's ratio to each."""
    found: dict[Path, list[tuple[float, float]]] = {path: [] for path in paths}
    for number in range(1, rounds + 1):
        for path in paths:
            prefill, decode = (_ours if path.is_dir() else _llama_bench)(path, threads)
            found[path].append((prefill, decode))
            told = f"prefill {prefill:.1f} tok/s, decode {decode:.1f} tok/s"
            click.echo(f"round {number} of {rounds}, {path.name}: {told}", err=True)
    click.echo(f"{threads} threads, {rounds} rounds: prefill of {PREFILL}, decode of {DECODE}")
    medians = {
        path: [statistics.median(v) for v in zip(*r, strict=True)] for path, r in found.items()
    }
    first = medians[paths[0]]
    for path, (prefill, decode) in medians.items():
        click.echo(
            f"{path.name}: prefill {prefill:.1f} tok/s, decode {decode:.1f} tok/s; {paths[0].name} "
            f"has {first[0] / prefill:.2f} and {first[1] / decode:.2f} of them"
        )


def _ours(path: Path, threads: int) -> tuple[float, float]:
    command = [sys.executable, "-m", "emo_export.cli.main", "bench", str(path), "--json"]
    sizes = ["--prefill", PREFILL, "--decode", DECODE, "--rounds", 1, "--threads", threads]
    done = subprocess.run(
        [*command, *map(str, sizes)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True
    )
    (model,) = json.loads(done.stdout)["models"]
    return model["figures"]["prefill"]["median"], model["figures"]["decode"]["median"]


def _llama_bench(path: Path, threads: int) -> tuple[float, float]:
    sizes = ("-p", PREFILL, "-n", DECODE, "-d", DEPTH, "-t", threads, "-r", 1, "-o", "json")
    done = tools().run("llama-bench", "-m", path, *sizes)
    rows = json.loads(done.stdout[done.stdout.index("[") :])
    backend = re.search(r"loaded CPU backend from \S*?([^/\s]+)$", done.stderr, re.MULTILINE)
    click.echo(f"  {backend[1] if backend else 'which CPU backend is not told'}", err=True)
    speeds = {bool(row["n_gen"]): row["avg_ts"] for row in rows}
    return speeds[False], speeds[True]


if __name__ == "__main__":
    main()
