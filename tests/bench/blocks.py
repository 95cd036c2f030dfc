"""Why a block's length changes the speed of decoding: MatMulNBits and QMoE at T = 1, by block.

    python -m tests.bench.blocks [--threads 2] [--json]

Each operator is timed twice: over weights that stay in a core's cache, on one thread, which tells
what its arithmetic can do; and over weights that don't, on all threads, which tells what is left of
it when they come from memory. Where the first (times the threads) is below the memory's bandwidth,
the operator is bound by arithmetic, not by bytes, and fewer bytes make it no faster.
"""

from __future__ import annotations

import itertools
import json
import statistics
import time
from dataclasses import asdict, dataclass
from typing import Any

import click
import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from emo_export.base.threads import physical_cores

COLS = 2048
SMALL, LARGE = 256, 3 << 16  # rows: a quarter of a MB of int4, and 200 MB
EXPERTS, USED, WIDTH = 64, 7, 1024  # 200 MB and more
SHAPES = [(bits, block) for bits in (4, 8) for block in (16, 32, 64, 128, 256)]
SECONDS, TOKENS = 0.4, 32


@dataclass(frozen=True)
class Row:
    """Weight bytes (scales included) for a weight, and GB/s of them in cache and from memory."""

    bits: int
    block: int
    bits_per_weight: float
    cached: float
    streamed: float
    qmoe: float


@click.command()
@click.option("--threads", default=physical_cores, type=click.IntRange(1))
@click.option("--rounds", default=5, show_default=True)
@click.option("--json", "as_json", is_flag=True)
def main(threads: int, rounds: int, as_json: bool) -> None:
    """Time the operators that hold blocks."""
    rates: dict[tuple[int, int], list[tuple[float, float, float]]] = {s: [] for s in SHAPES}
    sessions = {shape: _sessions(*shape, threads) for shape in SHAPES}
    for _ in range(rounds):  # in turn, so that the machine's drift falls on all alike
        for shape, (cached, streamed, experts) in sessions.items():
            linear, routed = _weight_bytes(*shape, COLS), _expert_bytes(*shape)
            rates[shape].append(
                (
                    SMALL * linear / _seconds(cached) / 1e9,
                    LARGE * linear / _seconds(streamed) / 1e9,
                    routed / _seconds(experts) / 1e9,
                )
            )
    rows = [
        Row(*shape, shape[0] + 32 / shape[1], *map(statistics.median, zip(*found, strict=True)))
        for shape, found in rates.items()
    ]
    if as_json:
        click.echo(json.dumps({"threads": threads, "rows": [asdict(row) for row in rows]}))
    else:
        _show(rows, threads)


def _weight_bytes(bits: int, block: int, cols: int) -> float:
    """Of one row: its values and a float32 scale for each block."""
    return cols * bits / 8 + cols / block * 4


def _expert_bytes(bits: int, block: int) -> float:
    """That QMoE reads for one token."""
    up, down = _weight_bytes(bits, block, COLS), _weight_bytes(bits, block, WIDTH)
    return USED * (2 * WIDTH * up + COLS * down)


def _sessions(bits: int, block: int, threads: int) -> tuple[Any, Any, Any]:
    return (
        _open(_matmul(bits, block, SMALL), 1, {"x": (1, COLS)}),
        _open(_matmul(bits, block, LARGE), threads, {"x": (1, COLS)}),
        _open(_experts(bits, block), threads, {"x": (1, COLS), "logits": (1, EXPERTS)}),
    )


def _open(graph: onnx.GraphProto, threads: int, shapes: dict[str, tuple[int, int]]) -> Any:
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # Threads that wait in a spin would slow down what is timed next.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    rng = np.random.default_rng(0)
    # Another token each time: the experts of one alone would stay in the cache.
    tokens = itertools.cycle(
        [
            {n: rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()}
            for _ in range(TOKENS)
        ]
    )
    return lambda: session.run(None, next(tokens))


def _stored(name: str, bits: int, block: int, *shape: int) -> list[onnx.TensorProto]:
    """Random weights (..., N, C) as QMoE stores them, and their scales."""
    rng, (*stack, cols) = np.random.default_rng(len(shape)), shape
    values = rng.integers(0, 256, (*stack, cols * bits // 8), dtype=np.uint8)
    scales = rng.uniform(0.001, 0.002, (*stack, cols // block)).astype(np.float32)
    return [
        numpy_helper.from_array(values, name),
        numpy_helper.from_array(scales, f"{name}_scales"),
    ]


def _matmul(bits: int, block: int, rows: int) -> onnx.GraphProto:
    weight, scales = _stored("w", bits, block, rows, COLS)
    weight.dims[:] = [rows, COLS // block, block * bits // 8]
    sizes = {"K": COLS, "N": rows, "bits": bits, "block_size": block, "accuracy_level": 4}
    node = helper.make_node(
        "MatMulNBits", ["x", "w", "w_scales"], ["y"], domain="com.microsoft", **sizes
    )
    return _graph([node], {"x": [None, COLS]}, [weight, scales])


def _experts(bits: int, block: int) -> onnx.GraphProto:
    stored = _stored("fc1", bits, block, EXPERTS, 2 * WIDTH, COLS)
    stored += _stored("fc2", bits, block, EXPERTS, COLS, WIDTH)
    inputs = ["x", "logits", "fc1", "fc1_scales", "", "fc2", "fc2_scales", *[""] * 7, "weights"]
    attributes = {
        "k": USED,
        "activation_type": "swiglu",
        "swiglu_fusion": 1,
        "activation_alpha": 1.0,
        "activation_beta": 0.0,
        "normalize_routing_weights": 0,
        "expert_weight_bits": bits,
        "block_size": block,
        "accuracy_level": 4,
    }
    nodes = [
        helper.make_node("Softmax", ["logits"], ["weights"]),
        helper.make_node("QMoE", inputs, ["y"], domain="com.microsoft", **attributes),
    ]
    return _graph(nodes, {"x": [None, COLS], "logits": [None, EXPERTS]}, stored)


def _graph(
    nodes: list[onnx.NodeProto],
    inputs: dict[str, list[int | None]],
    weights: list[onnx.TensorProto],
) -> onnx.GraphProto:
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in inputs.items()]
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, None])
    return helper.make_graph(nodes, "blocks", values, [out], weights)


def _seconds(run: Any) -> float:
    """Median of a run."""
    run()
    taken: list[float] = []
    while sum(taken) < SECONDS:
        start = time.perf_counter()
        run()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def _show(rows: list[Row], threads: int) -> None:
    title = f"ONNX Runtime {onnxruntime.__version__}, one token, {COLS} columns: GB/s of weights"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    for column in (
        "bits",
        "block",
        "bits/weight",
        "in cache, 1 thread",
        f"from memory, {threads}",
        f"QMoE, {threads}",
    ):
        table.add_column(column, justify="right")
    for row in rows:
        rates = (f"{rate:.1f}" for rate in (row.cached, row.streamed, row.qmoe))
        table.add_row(str(row.bits), str(row.block), f"{row.bits_per_weight:.2f}", *rates)
    Console(width=100, highlight=False).print(table)


if __name__ == "__main__":
    main()
