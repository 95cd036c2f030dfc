"""Which low-bit kernels of the installed ONNX Runtime are right, and how fast, on this CPU.

    python -m tests.bench.onnx_kernels [--calls 24] [WORDS]

Each row is one operator on random weights of the released shape (hidden 2048, 32 experts of 1024, 8
of them chosen anew at every call, so that weights come from memory): its error beside numpy in
float64, with int8 activations allowed and not (level 4 and 0, the latter without prepacking, as
`converters/onnx/exact.py` opens a model), and its speed for one token and for 64 beside 4 bits in
blocks of 128, which take turns with it. A thread's own processor time is taken, of one thread and
the lower quartile, so that other work on the machine does little harm. WORDS pick the rows whose
name has them.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import click
import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

Array = npt.NDArray[Any]

HIDDEN, WIDTH, EXPERTS, CHOSEN, VOCAB = 2048, 1024, 32, 8, 8192
PREFILL = 64
MICROSOFT = "com.microsoft"


@dataclass(frozen=True)
class Case:
    """An operator with one kind of weights; `zeros`: with zero points."""

    operator: str
    bits: int
    block: int
    zeros: bool = False
    half: bool = False  # float16 scales
    block2: int = 0  # of a second operator after the first, in the same graph

    @property
    def name(self) -> str:
        """As a row's title."""
        more = ", zero points" * self.zeros + ", float16 scales" * self.half
        mixed = f" and {self.block2}" if self.block2 else ""
        return f"{self.operator} {self.bits} bits, block {self.block}{mixed}{more}"


EXPERT_CASES = (
    Case("QMoE", 4, 128),
    *(Case("QMoE", 4, block) for block in (64, 32, 16)),
    Case("QMoE", 4, 128, zeros=True),
    Case("QMoE", 4, 32, zeros=True),
    Case("QMoE", 4, 128, half=True),
    Case("QMoE", 4, 128, block2=32),
    *(Case("QMoE", 2, block) for block in (128, 64, 32, 16)),
    *(Case("QMoE", 2, block, zeros=True) for block in (128, 64, 32)),
    Case("QMoE", 2, 64, half=True),
    Case("QMoE", 8, 128),
)
MATRIX_CASES = (
    Case("MatMulNBits", 4, 128),
    Case("MatMulNBits", 4, 32),
    Case("MatMulNBits", 4, 128, zeros=True),
    Case("MatMulNBits", 4, 128, half=True),
    *(Case("MatMulNBits", 2, block) for block in (128, 64, 32, 16)),
    Case("MatMulNBits", 2, 64, zeros=True),
    Case("MatMulNBits", 8, 128),
)
GATHER_CASES = (
    Case("GatherBlockQuantized", 4, 128),
    Case("GatherBlockQuantized", 2, 128),
    Case("GatherBlockQuantized", 2, 32),
    Case("GatherBlockQuantized", 8, 128),
)


class Blocks:
    """Random weights (..., rows, cols) in blocks, as the operators store them."""

    def __init__(self, rng: np.random.Generator, shape: tuple[int, ...], case: Case, block: int):
        cols, bits = shape[-1], case.bits
        groups = (*shape[:-1], cols // block)
        self.bits, self.block = bits, block
        self.stored = rng.integers(0, 256, (*shape[:-1], cols * bits // 8), dtype=np.uint8)
        # Bounds that hold the results near those of a trained model's; exact in float16.
        scales = rng.uniform(0.5, 1.5, groups) * 0.02 / (1 << (bits - 1))
        self.scales = scales.astype(np.float16 if case.half else np.float32)
        self.zeros = None
        if case.zeros:
            per = 8 // bits
            packed = -(-groups[-1] // per)
            self.zeros = rng.integers(0, 256, (*shape[:-1], packed), dtype=np.uint8)

    def weights(self, *at: int) -> npt.NDArray[np.float64]:
        """The matrix at an index of the leading axes, in float64."""
        levels = _unpacked(self.stored[at], self.bits).astype(np.float64)
        scales = self.scales[at].astype(np.float64)
        middle: Any = 1 << (self.bits - 1)
        if self.zeros is not None:
            zeros = _unpacked(self.zeros[at], self.bits)[..., : scales.shape[-1]]
            middle = np.repeat(zeros.astype(np.float64), self.block, axis=-1)
        found: npt.NDArray[np.float64] = (levels - middle) * np.repeat(scales, self.block, axis=-1)
        return found


def _unpacked(stored: Array, bits: int) -> Array:
    """Bytes -> their values, the lowest bits first."""
    parts = [(stored >> shift) & ((1 << bits) - 1) for shift in range(0, 8, bits)]
    return np.stack(parts, axis=-1).reshape(*stored.shape[:-1], -1)


class Tried:
    """A case's model and what it should compute."""

    def __init__(self, case: Case) -> None:
        self.case, self.rng = case, np.random.default_rng(case.bits)
        self.element = TensorProto.FLOAT16 if case.half else TensorProto.FLOAT
        self.dtype = np.float16 if case.half else np.float32
        self.parts: list[tuple[Blocks, ...]] = []
        for block in (case.block, case.block2)[: 2 if case.block2 else 1]:
            shapes: tuple[tuple[int, ...], ...] = ((VOCAB, HIDDEN),)
            if case.operator == "QMoE":
                shapes = ((EXPERTS, 2 * WIDTH, HIDDEN), (EXPERTS, HIDDEN, WIDTH))
            self.parts.append(tuple(Blocks(self.rng, shape, case, block) for shape in shapes))

    def session(self, level: int) -> onnxruntime.InferenceSession:
        """An open model at an accuracy level."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 4
        if level == 0:
            options.add_session_config_entry("session.disable_prepacking", "1")
        model = self._model(level).SerializeToString()
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def feeds(self, tokens: int) -> dict[str, Array]:
        """Inputs for so many tokens; each call chooses other experts."""
        if self.case.operator == "GatherBlockQuantized":
            return {"x": self.rng.integers(0, VOCAB, tokens)}
        feeds = {"x": self.rng.standard_normal((tokens, HIDDEN)).astype(self.dtype)}
        if self.case.operator == "QMoE":
            logits = self.rng.standard_normal((tokens, EXPERTS))
            feeds["r"] = logits.astype(self.dtype)
            feeds["p"] = (np.exp(logits) / np.exp(logits).sum(1, keepdims=True)).astype(self.dtype)
        return feeds

    def wanted(self, feeds: Mapping[str, Array]) -> npt.NDArray[np.float64]:
        """The result in float64."""
        if self.case.operator == "GatherBlockQuantized":
            return np.stack([self.parts[0][0].weights(int(row)) for row in feeds["x"]])
        x = feeds["x"].astype(np.float64)
        if self.case.operator == "MatMulNBits":
            return x @ self.parts[0][0].weights().T
        for fc1, fc2 in self.parts:
            out = np.zeros_like(x)
            for token, (logits, weights) in enumerate(zip(feeds["r"], feeds["p"], strict=True)):
                for expert in np.argsort(-logits)[:CHOSEN]:
                    both = fc1.weights(int(expert)) @ x[token]
                    gate, up = both[0::2], both[1::2]
                    inner = gate / (1 + np.exp(-gate)) * up
                    out[token] += float(weights[expert]) * (fc2.weights(int(expert)) @ inner)
            x = out
        return x

    def _model(self, level: int) -> onnx.ModelProto:
        nodes, tensors, value = [], [], "x"
        for number, parts in enumerate(self.parts):
            inputs = []
            for index, part in enumerate(parts):
                stem = f"w{number}{index}"
                tensors += self._tensors(stem, part)
                inputs.append((stem, f"{stem}.s", f"{stem}.z" if part.zeros is not None else ""))
            nodes.append(self._node(value, f"y{number}", inputs, level, parts[0].block))
            value = f"y{number}"
        given = [helper.make_tensor_value_info("x", self.element, [None, HIDDEN])]
        if self.case.operator == "GatherBlockQuantized":
            given = [helper.make_tensor_value_info("x", TensorProto.INT64, [None])]
        if self.case.operator == "QMoE":
            shape = [None, EXPERTS]
            given += [helper.make_tensor_value_info(n, self.element, shape) for n in "rp"]
        out = helper.make_tensor_value_info(value, self.element, [None, None])
        graph = helper.make_graph(nodes, "kernel", given, [out], tensors)
        opsets = [helper.make_opsetid("", 21), helper.make_opsetid(MICROSOFT, 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=10)

    def _tensors(self, stem: str, part: Blocks) -> list[onnx.TensorProto]:
        stored, zeros = part.stored, part.zeros
        if self.case.operator == "MatMulNBits":
            stored = stored.reshape(*part.scales.shape, -1)
        found = [(stem, stored), (f"{stem}.s", part.scales)]
        found += [] if zeros is None else [(f"{stem}.z", zeros)]
        return [numpy_helper.from_array(array, name) for name, array in found]

    def _node(
        self, x: str, y: str, inputs: list[tuple[str, str, str]], level: int, block: int
    ) -> onnx.NodeProto:
        case, (weight, scales, zeros) = self.case, inputs[0]
        settings: dict[str, Any] = {"block_size": block}
        if case.operator == "GatherBlockQuantized":
            names = [weight, x, scales]
            settings |= {"bits": case.bits, "gather_axis": 0, "quantize_axis": 1}
        elif case.operator == "MatMulNBits":
            names = [x, weight, scales, zeros]
            settings |= {"bits": case.bits, "K": HIDDEN, "N": VOCAB, "accuracy_level": level}
        else:
            weight2, scales2, zeros2 = inputs[1]
            names = [x, "r", weight, scales, "", weight2, scales2, *[""] * 4]
            names += [zeros, zeros2, "", "p"]
            settings |= {
                "expert_weight_bits": case.bits,
                "accuracy_level": level,
                "k": CHOSEN,
                "activation_type": "swiglu",
                "swiglu_fusion": 1,
                "activation_alpha": 1.0,
                "activation_beta": 0.0,
                "normalize_routing_weights": 0,
            }
        return helper.make_node(case.operator, names, [y], domain=MICROSOFT, **settings)


@click.command()
@click.argument("words", nargs=-1)
@click.option("--calls", default=24, show_default=True, help="Of each row, one token each.")
def main(words: tuple[str, ...], calls: int) -> None:
    """Print a table of ONNX Runtime's kernels for few bits."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("operator and weights")
    for column in ("error, level 4", "level 0", "1 token", f"{PREFILL} tokens"):
        table.add_column(column, justify="right")
    for cases in (EXPERT_CASES, MATRIX_CASES, GATHER_CASES):
        chosen = [case for case in cases if all(word in case.name for word in words)]
        if not chosen:
            continue
        first = Tried(cases[0])
        session = first.session(4)
        for case in chosen:
            click.echo(case.name, err=True)
            table.add_row(case.name, *_row(case, first, session, calls))
    out = Console(width=100, highlight=False)
    out.print(f"ONNX Runtime {onnxruntime.__version__}, one thread")
    out.print(table)
    out.print("error: the largest, of the largest result. tokens: speed beside the table's first.")


def _row(case: Case, first: Tried, base: onnxruntime.InferenceSession, calls: int) -> list[str]:
    tried = Tried(case)
    opened: list[onnxruntime.InferenceSession] = []
    errors: list[str] = []
    for level in (4, 0):
        try:
            opened.append(tried.session(level))
            feeds = tried.feeds(2)
            (found,) = opened[-1].run(None, feeds)
        except Exception as error:  # ONNX Runtime's share no other base class
            click.echo(f"  {str(error)[:300]}", err=True)
            return [*errors, *["refused"] * (4 - len(errors))]
        want = tried.wanted(feeds)
        errors.append(f"{np.abs(found - want).max() / np.abs(want).max():.1e}")
    sizes = ((1, calls), (PREFILL, 3))
    ratios = [_ratio(tried, opened[0], first, base, tokens, count) for tokens, count in sizes]
    return [*errors, *(f"{ratio:.2f}" for ratio in ratios)]


def _ratio(
    tried: Tried,
    session: onnxruntime.InferenceSession,
    first: Tried,
    base: onnxruntime.InferenceSession,
    tokens: int,
    calls: int,
) -> float:
    """Speed beside the first's, in turns."""
    pairs = ((first, base), (tried, session))
    taken: list[list[float]] = [[], []]
    for _ in range(calls):
        for times, (of, opened) in zip(taken, pairs, strict=True):
            feeds = of.feeds(tokens)
            start = time.thread_time()
            opened.run(None, feeds)
            times.append(time.thread_time() - start)
    low, other = (float(np.quantile(times, 0.25)) for times in taken)
    return low / other


if __name__ == "__main__":
    main()
