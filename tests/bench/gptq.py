"""How long GPTQ takes for a matrix of the released shape, beside the format's own rounding.

    python -m tests.bench.gptq [--to q4_0 --to int4b128] [--rows 1024 --columns 2048]

Medians of seconds of a matrix (rows, columns) with second moments and drift of random inputs, the
factor made anew each time and not; and what that makes for the routed experts of a layer that keeps
32.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import click
import numpy as np

from emo_export.converters.gguf import grids as ggml
from emo_export.converters.gguf.formats import GGML_FORMATS
from emo_export.converters.onnx import grids as onnx
from emo_export.converters.onnx.formats import NBITS_FORMATS
from emo_export.interfaces import InputStatistics
from emo_export.rounding.quantiser import Factors, Gptq

KEPT = 32


@click.command()
@click.option("--to", "names", multiple=True, default=("q4_0", "q4_k", "q8_0", "int4b128"))
@click.option("--rows", default=1024, show_default=True)
@click.option("--columns", default=2048, show_default=True)
@click.option("--repeat", default=3, show_default=True)
def main(names: tuple[str, ...], rows: int, columns: int, repeat: int) -> None:
    """Time formats."""
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((rows, columns), np.float32)
    inputs = rng.standard_normal((2 * columns, columns), np.float32)
    moments = inputs.T @ inputs / len(inputs)
    drift = 0.01 * rng.standard_normal((columns, columns), np.float32)
    told = InputStatistics(len(inputs), np.diag(moments).copy(), moments, drift)
    for name in names:
        ours = name in NBITS_FORMATS
        kind = NBITS_FORMATS[name] if ours else GGML_FORMATS[name]
        grid = (onnx if ours else ggml).grid_of(kind)
        shared = Gptq(kind, grid, Factors())
        shared.quantize(weights, told)
        plain = median(lambda k=kind: k.quantize(weights, told.diagonal), repeat)
        anew = median(lambda k=kind, g=grid: Gptq(k, g, Factors()).quantize(weights, told), repeat)
        again = median(lambda s=shared: s.quantize(weights, told), repeat)
        layer = KEPT * (2 * anew + again)
        click.echo(
            f"{name:10} own rounding {plain:.3f} s, GPTQ {anew:.2f} s, {again:.2f} s with the "
            f"factor there: {anew / plain:.0f} and {again / plain:.0f} times; {layer:.0f} s for "
            f"{KEPT} experts of three such matrices"
        )


def median(work: Callable[[], object], repeat: int) -> float:
    """Seconds."""
    taken = []
    for _ in range(repeat):
        began = time.perf_counter()
        work()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


if __name__ == "__main__":
    main()
