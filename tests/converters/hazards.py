"""What each type stores of values that are hard to store, as its bytes are read by others.

    python -m tests.converters.hazards

prints the table of docs/numerics.md, found by bisection: a type's largest value, and a block's
largest value below which all of it becomes zero. gguf-py reads ggml's types, ONNX Runtime's kernels
its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import gguf
import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from emo_export.converters.gguf.formats import GGML_FORMATS, GgmlFormat
from emo_export.converters.onnx.formats import NBITS_FORMATS, IntBlocks
from emo_export.errors import BadValueError
from emo_export.interfaces import Format, Packed
from tests.kit.exporting import Array

COLUMNS = 512
FORMATS: Mapping[str, Format] = {
    **{f"gguf:{name}": kind for name, kind in GGML_FORMATS.items()},
    **{f"onnx:{name}": kind for name, kind in NBITS_FORMATS.items()},
}
LONG_TO_START = {"gguf:iq2_s", "gguf:iq2_xs", "gguf:iq2_xxs", "gguf:iq3_s", "gguf:iq3_xxs"}
"""ggml makes their codebooks for seconds, once in a process."""


def read_elsewhere(kind: Format, packed: Packed) -> Array:
    """Rows (N, C) as gguf-py or ONNX Runtime reads them."""
    if isinstance(kind, GgmlFormat):
        dtype = {"f32": np.float32, "f16": np.float16}.get(kind.name, np.uint8)
        with np.errstate(over="ignore", invalid="ignore"):
            return gguf.quants.dequantize(packed["rows"].view(dtype), kind.kind)
    if isinstance(kind, IntBlocks):
        return _multiplied(kind, packed)
    if kind.name == "int8row":
        return _dequantised(packed)
    return packed["weight"]


def _run(nodes: list[object], given: Mapping[str, Array], fed: Mapping[str, Array]) -> Array:
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "hazards",
        [value(name, TensorProto.FLOAT, array.shape) for name, array in fed.items()],
        [value("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in given.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, ["CPUExecutionProvider"]
    )
    found: Array = session.run(None, dict(fed))[0]
    return found


def _multiplied(kind: IntBlocks, packed: Packed) -> Array:
    """The unit matrix times what MatMulNBits makes of the bytes."""
    count, blocks = packed["scales"].shape
    columns = blocks * kind.block
    node = helper.make_node(
        "MatMulNBits",
        ["x", "w", "s"],
        ["y"],
        domain="com.microsoft",
        K=columns,
        N=count,
        bits=kind.bits,
        block_size=kind.block,
    )
    given = {"w": packed["weight"].reshape(count, blocks, -1), "s": packed["scales"]}
    return _run([node], given, {"x": np.eye(columns, dtype=np.float32)}).T


def _dequantised(packed: Packed) -> Array:
    """The bytes by DequantizeLinear, a scale for each row; the model has 128 as zero point."""
    count = len(packed["scales"])
    node = helper.make_node("DequantizeLinear", ["w", "s", "z"], ["y"], axis=0)
    zero = np.full(count, 128, np.uint8)
    return _run([node], {"w": packed["weight"], "s": packed["scales"][:, 0], "z": zero}, {})


def normal(count: int = 1, largest: float = 1.0) -> Array:
    """Normal rows (count, COLUMNS), the largest magnitude in each 16 columns `largest`."""
    blocks = np.random.default_rng(7).standard_normal((count, COLUMNS // 16, 16))
    blocks /= np.abs(blocks).max(-1, keepdims=True)
    return (blocks * largest).reshape(count, COLUMNS).astype(np.float32)


def stores(kind: Format, largest: float) -> bool:
    """Whether rows up to `largest` are packed."""
    rows, importance = normal(largest=largest), np.ones(COLUMNS, np.float32)
    try:
        kind.check(kind.quantize(rows, importance))
    except BadValueError:
        return False
    return True


def vanishes(kind: Format, largest: float) -> bool:
    """Whether rows up to `largest` are all read as zero."""
    rows, importance = normal(largest=largest), np.ones(COLUMNS, np.float32)
    return not kind.dequantize(kind.quantize(rows, importance)).any()


def border(holds: Callable[[float], bool], low: float, high: float) -> float:
    """Between `low`, where it holds, and `high`, where not, to three digits."""
    while high / low > 1.0005:
        middle = float(np.sqrt(low) * np.sqrt(high))
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def line(name: str) -> str:
    """A row of the table."""
    kind, most = FORMATS[name], float(np.finfo(np.float32).max)
    largest = most if stores(kind, most) else border(lambda x: stores(kind, x), 1.0, most)
    least = 1e-45
    gone = vanishes(kind, least)
    below = f"{border(lambda x: vanishes(kind, x), least, 1.0):.2g}" if gone else "kept"
    return f"| `{name}` | {largest:.4g} | {below} |"


def table() -> list[str]:
    """The table, a line each."""
    head = ("| type | largest value | a block up to this is all zeros |", "|---|---|---|")
    return [*head, *map(line, FORMATS)]


if __name__ == "__main__":
    print(*table(), sep="\n")
