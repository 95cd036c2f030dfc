"""The small vocabulary of the decoder graph: nodes, constants and linear layers."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import GraphProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from emo_export.converters.onnx.data import ExternalData
from emo_export.converters.onnx.formats import Int8Rows, IntBlocks
from emo_export.converters.onnx.kinds import Kind
from emo_export.interfaces import Format

MICROSOFT = "com.microsoft"
_SMALLEST = 1e-30  # stands in for the peak of a row of zeros


@dataclass(frozen=True)
class Linear:
    """A stored matrix (N, C) and the names under which a graph finds it."""

    name: str
    rows: int
    cols: int
    kind: Format
    has_bias: bool = False

    def declare(self, data: ExternalData) -> None:
        """Reserve weight, scales and bias."""
        if isinstance(self.kind, IntBlocks):
            blocks = self.cols // self.kind.block
            blob = self.kind.block * self.kind.bits // 8
            data.declare(f"{self.name}.weight", "u8", (self.rows, blocks, blob), self.rows)
            data.declare(f"{self.name}.scales", "f32", (self.rows, blocks), self.rows)
        else:
            element = "u8" if isinstance(self.kind, Int8Rows) else "f32"
            data.declare(f"{self.name}.weight", element, (self.rows, self.cols), self.rows)
            if element == "u8":
                data.declare(f"{self.name}.scales", "f32", (self.rows,), self.rows)
        if self.has_bias:
            data.declare(f"{self.name}.bias", "f32", (self.rows,), self.rows)


class Graph:
    """Collects nodes; every value is a name."""

    def __init__(self, kind: Kind, accuracy_level: int) -> None:
        self.kind = kind
        self.accuracy_level = accuracy_level
        self.nodes: list[NodeProto] = []
        self.constants: dict[str, TensorProto] = {}
        self.defaults: list[TensorProto] = []  # of inputs that a caller may leave out
        self._numbers = itertools.count(1)

    def inner(self) -> Graph:
        """An empty graph for a branch or a body; its constants are this one's."""
        inner = Graph(self.kind, self.accuracy_level)
        inner.constants, inner._numbers = self.constants, self._numbers
        return inner

    def add(
        self,
        op: str,
        inputs: Sequence[str],
        attributes: Mapping[str, Any] | None = None,
        *,
        domain: str = "",
        outputs: Sequence[str] | None = None,
        name: str = "",
    ) -> str:
        """Append a node and return the name of its first output."""
        name = name or f"{op}_{next(self._numbers)}"
        outputs = outputs or [f"{name}.out"]
        node = helper.make_node(op, list(inputs), list(outputs), name=name, domain=domain)
        for key, value in (attributes or {}).items():
            node.attribute.append(helper.make_attribute(key, value))
        self.nodes.append(node)
        return outputs[0]

    def ints(self, values: Sequence[int] | int) -> str:
        """An int64 constant (a scalar for an int)."""
        array = np.array(values, dtype=np.int64)
        return self.constant("ints_" + "_".join(map(str, np.atleast_1d(array))), array)

    def float(self, value: float) -> str:
        """A float32 scalar."""
        return self.constant(f"float_{value}", np.array(value, dtype=np.float32))

    def constant(self, name: str, array: Any) -> str:
        """A small constant, stored in the graph itself; one per name and rank."""
        key = f"{name}.{array.ndim}d"
        self.constants.setdefault(key, numpy_helper.from_array(array, key))
        return key

    def linear(self, x: str, layer: Linear) -> str:
        """X (tokens, C) -> (tokens, N)."""
        bias = f"{layer.name}.bias" if layer.has_bias else ""
        if isinstance(layer.kind, Int8Rows):
            weight = self.add("Transpose", [f"{layer.name}.weight"], {"perm": [1, 0]})
            out = self.int8_matmul(x, weight, f"{layer.name}.scales", layer.name)
            return self.add("Add", [out, bias]) if bias else out
        if not isinstance(layer.kind, IntBlocks):
            inputs = [x, f"{layer.name}.weight"] + ([bias] if bias else [])
            return self.add("Gemm", inputs, {"transB": 1}, name=layer.name)
        inputs = [x, f"{layer.name}.weight", f"{layer.name}.scales"]
        return self.add(
            "MatMulNBits",
            inputs + (["", "", bias] if bias else []),
            {
                "K": layer.cols,
                "N": layer.rows,
                "bits": layer.kind.bits,
                "block_size": layer.kind.block,
                "accuracy_level": self.accuracy_level,
            },
            domain=MICROSOFT,
            name=layer.name,
        )

    def int8_matmul(self, x: str, weight: str, scales: str, name: str) -> str:
        """X (..., C) by stored int8 rows, transposed: (..., C, N), scales (..., N) -> (..., N).

        Every row of x has a scale of its own. DynamicQuantizeLinear has one for all it is given: a
        token's outlier would round the others' features away, and a batch change its rows.
        """
        peak = self.add("ReduceMax", [self.add("Abs", [x]), self.ints([-1])], {"keepdims": 1})
        peak = self.add("Max", [peak, self.float(_SMALLEST)])
        step = self.add("Mul", [peak, self.float(1 / 127)])
        middle = self.constant("middle", np.array(Int8Rows.zero, dtype=np.uint8))
        x8 = self.add("QuantizeLinear", [self.add("Div", [x, step]), self.float(1.0), middle])
        sums = self.add("MatMulInteger", [x8, weight, middle, middle], name=name)
        sums = self.add("Cast", [sums], {"to": TensorProto.FLOAT})
        return self.add("Mul", [self.add("Mul", [sums, scales]), step])

    def swiglu(self, gate: str, up: str) -> str:
        """silu(gate) * up."""
        return self.add("Mul", [self.add("Mul", [gate, self.add("Sigmoid", [gate])]), up])

    def body(
        self,
        name: str,
        inputs: Sequence[ValueInfoProto],
        outputs: Sequence[ValueInfoProto],
    ) -> GraphProto:
        """The nodes as the subgraph of an operator."""
        return helper.make_graph(self.nodes, name, list(inputs), list(outputs))

    def model(
        self,
        inputs: Sequence[ValueInfoProto],
        outputs: Sequence[ValueInfoProto],
        data: ExternalData,
    ) -> onnx.ModelProto:
        """The finished model, its large initializers in the external data."""
        initializers = [*self.constants.values(), *self.defaults, *data.protos]
        graph = helper.make_graph(self.nodes, "emo", list(inputs), list(outputs), initializers)
        opsets = [helper.make_opsetid("", self.kind.opset)]
        if self.kind.microsoft:
            opsets.append(helper.make_opsetid(MICROSOFT, 1))
        model = helper.make_model(graph, opset_imports=opsets, ir_version=self.kind.ir_version)
        model.producer_name = "emo-export"
        needs = {
            "emo_export.graph": self.kind.name,
            "emo_export.onnxruntime_min": self.kind.onnxruntime_min,
        }
        helper.set_model_props(model, needs)
        return model


def mlp(graph: Graph, x: str, gate_up: Linear, down: Linear) -> str:
    """down(silu(gate x) * up x), with gate and up stored as one matrix."""
    both = graph.linear(x, gate_up)
    width = gate_up.rows // 2
    gate, up = f"{gate_up.name}.gate", f"{gate_up.name}.up"
    graph.add("Split", [both, graph.ints([width, width])], {"axis": 1}, outputs=[gate, up])
    return graph.linear(graph.swiglu(gate, up), down)
