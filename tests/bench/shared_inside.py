"""What decoding would gain from the shared expert inside QMoE, chosen by every token with weight 1.

    python -m tests.bench.shared_inside [--calls 120]

The released shape (hidden 2048, 32 experts of 1024, 8 chosen, one shared), all int4 in blocks of
128: QMoE with the shared expert's two MatMulNBits beside it, as our graph has them, and QMoE of 33
experts, of which it takes 9. The lower quartile of a call's processor time, in turns.
"""

from __future__ import annotations

import time
from typing import Any

import click
import numpy as np
import onnxruntime
from onnx import NodeProto, TensorProto, helper, numpy_helper

from emo_export.converters.onnx.graph import MICROSOFT

HIDDEN, WIDTH, EXPERTS, CHOSEN, BLOCK = 2048, 1024, 32, 8, 128
SETTINGS = {"block_size": BLOCK, "accuracy_level": 4}
QMOE: dict[str, Any] = SETTINGS | {
    "expert_weight_bits": 4,
    "activation_type": "swiglu",
    "swiglu_fusion": 1,
    "activation_alpha": 1.0,
    "activation_beta": 0.0,
    "normalize_routing_weights": 0,
}


def stacks() -> dict[str, Any]:
    """fc1 with gate and up interleaved and fc2 of all experts, the shared one the last."""
    rng, found = np.random.default_rng(0), {}
    for name, rows, cols in (("w1", 2 * WIDTH, HIDDEN), ("w2", HIDDEN, WIDTH)):
        count = EXPERTS + 1
        found[name] = rng.integers(0, 256, (count, rows, cols // 2), dtype=np.uint8)
        scales = rng.uniform(0.001, 0.004, (count, rows, cols // BLOCK))
        found[f"{name}s"] = scales.astype(np.float32)
    return found


def session(weights: dict[str, Any], threads: int, *, inside: bool) -> Any:
    """Of x (T, HIDDEN) and router logits r (T, EXPERTS)."""
    held = dict(weights) if inside else {name: array[:-1] for name, array in weights.items()}
    nodes, logits, shares = [helper.make_node("Softmax", ["r"], ["p"], axis=1)], "r", "p"
    if inside:
        held |= {"pads": np.array([0, 0, 0, 1]), "most": np.float32(1e30), "one": np.float32(1)}
        nodes.append(helper.make_node("Pad", ["r", "pads", "most"], ["r2"]))
        nodes.append(helper.make_node("Pad", ["p", "pads", "one"], ["p2"]))
        logits, shares = "r2", "p2"
    inputs = ["x", logits, "w1", "w1s", "", "w2", "w2s", *[""] * 7, shares]
    name = "y" if inside else "routed"
    nodes.append(
        helper.make_node("QMoE", inputs, [name], domain=MICROSOFT, k=CHOSEN + inside, **QMOE)
    )
    if not inside:
        nodes += _beside(weights, held)
    given = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, size])
        for name, size in (("x", HIDDEN), ("r", EXPERTS))
    ]
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, HIDDEN])
    tensors = [numpy_helper.from_array(np.asarray(array), name) for name, array in held.items()]
    graph = helper.make_graph(nodes, "experts", given, [out], tensors)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(MICROSOFT, 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _beside(weights: dict[str, Any], held: dict[str, Any]) -> list[NodeProto]:
    """The shared expert as an MLP of its own, and the sum."""
    for name, array in weights.items():
        last = array[-1]
        if name.startswith("w1"):
            last = np.concatenate([last[0::2], last[1::2]])
        blocks = (WIDTH if name.startswith("w2") else HIDDEN) // BLOCK
        held[f"m{name}"] = last if name.endswith("s") else last.reshape(len(last), blocks, -1)
    held["halves"] = np.array([WIDTH, WIDTH])

    def product(x: str, y: str, stem: str, cols: int, rows: int) -> NodeProto:
        inputs, sizes = [x, stem, f"{stem}s"], {"K": cols, "N": rows, "bits": 4}
        return helper.make_node("MatMulNBits", inputs, [y], domain=MICROSOFT, **SETTINGS, **sizes)

    return [
        product("x", "both", "mw1", HIDDEN, 2 * WIDTH),
        helper.make_node("Split", ["both", "halves"], ["gate", "up"], axis=1),
        helper.make_node("Sigmoid", ["gate"], ["open"]),
        helper.make_node("Mul", ["gate", "open"], ["silu"]),
        helper.make_node("Mul", ["silu", "up"], ["inner"]),
        product("inner", "shared", "mw2", WIDTH, HIDDEN),
        helper.make_node("Add", ["routed", "shared"], ["y"]),
    ]


@click.command()
@click.option("--calls", default=120, show_default=True)
def main(calls: int) -> None:
    """Print the ratio of both for one token and for 64, with one thread and two."""
    weights, rng = stacks(), np.random.default_rng(1)

    def feeds(tokens: int) -> dict[str, Any]:
        sizes = (("x", HIDDEN), ("r", EXPERTS))
        return {n: rng.standard_normal((tokens, s)).astype(np.float32) for n, s in sizes}

    for threads in (1, 2):
        both = [session(weights, threads, inside=inside) for inside in (False, True)]
        one = feeds(5)
        beside, inside = (opened.run(None, one)[0] for opened in both)
        click.echo(f"differ by {np.abs(beside - inside).max() / np.abs(beside).max():.1e}")
        for tokens, count in ((1, calls), (64, max(3, calls // 20))):
            taken: list[list[float]] = [[], []]
            for _ in range(count):
                for times, opened in zip(taken, both, strict=True):
                    given, start = feeds(tokens), time.process_time()
                    opened.run(None, given)
                    times.append(time.process_time() - start)
            first, second = (float(np.quantile(times, 0.25)) for times in taken)
            click.echo(
                f"{threads} threads, {tokens} tokens: {1e3 * first:.2f} ms beside, "
                f"{1e3 * second:.2f} ms inside, {first / second:.2f} times as fast"
            )


if __name__ == "__main__":
    main()
