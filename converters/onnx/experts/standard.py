"""The routed experts of the `standard` graph: the weights of the chosen gathered for each token.

Nothing here is outside the domain ai.onnx. A Scan goes over the tokens, so that the gathered copy
is that of one token's experts however long the prompt is. Weights lie transposed, (R, C, N), as
MatMul and MatMulInteger want them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import TensorProto, helper

from emo_export.converters.onnx.data import ExternalData, ReadRows
from emo_export.converters.onnx.experts.routing import choose
from emo_export.converters.onnx.formats import Int8Rows
from emo_export.converters.onnx.graph import Graph
from emo_export.interfaces import F32, Format, Packed
from emo_export.model.config import LayerShape
from emo_export.model.names import Role


@dataclass(frozen=True)
class GatheredExperts:
    """The routed experts of a layer: fc1 (R, D, 2F), gates then ups, and fc2 (R, F, D)."""

    name: str
    fc1: str
    fc2: str
    experts: int
    hidden: int
    width: int
    kind: Format

    def declare(self, data: ExternalData) -> None:
        """Reserve both stacks, and at int8 a scale for each of their columns."""
        for name, rows, cols in (
            (self.fc1, self.hidden, 2 * self.width),
            (self.fc2, self.width, self.hidden),
        ):
            shape = self.experts, rows, cols
            element = "u8" if isinstance(self.kind, Int8Rows) else "f32"
            data.declare(f"{name}.weight", element, shape, self.experts * rows)
            if element == "u8":
                data.declare(f"{name}.scales", "f32", (self.experts, 1, cols), self.experts)

    def gate_up(self, place: int, gate: Packed, up: Packed) -> Iterator[tuple[str, int, F32]]:
        """(initializer, first row, rows) of an expert's gate and up, side by side."""
        for part, rows in up.items():
            both = np.concatenate([gate[part], rows]).T
            yield f"{self.fc1}.{part}", place * len(both), both

    def down(self, place: int, packed: Packed) -> Iterator[tuple[str, int, F32]]:
        """(initializer, first row, rows) of an expert's down matrix."""
        for part, rows in packed.items():
            yield f"{self.fc2}.{part}", place * len(rows.T), rows.T

    def stored(self, role: Role, place: int, part: str, read: ReadRows) -> Any:
        """`part` of the matrix of a role of the expert at a place, as `Format` packs it."""
        stack, cols = (self.fc2, self.width) if role == Role.DOWN else (self.fc1, self.hidden)
        rows = 1 if part == "scales" else cols
        turned = read(f"{stack}.{part}", place * rows, (place + 1) * rows).T
        if role == Role.DOWN:
            return turned
        return turned[: self.width] if role == Role.GATE else turned[self.width :]

    def add(
        self, graph: Graph, x: str, logits: str, layer: LayerShape, norm_topk: bool
    ) -> tuple[str, str]:
        """Normed x (tokens, D) -> the weighted sum (tokens, D), and the forced experts' weights."""
        chosen, forced = choose(graph, logits, layer, norm_topk)
        count, name = layer.num_routed_per_tok, f"{self.name}.token"
        inputs = [
            helper.make_tensor_value_info(f"{name}.x", TensorProto.FLOAT, [self.hidden]),
            helper.make_tensor_value_info(f"{name}.places", TensorProto.INT64, [count]),
            helper.make_tensor_value_info(f"{name}.weights", TensorProto.FLOAT, [count]),
        ]
        body = graph.inner()
        out = self._token(body, *(value.name for value in inputs))
        output = helper.make_tensor_value_info(out, TensorProto.FLOAT, [self.hidden])
        attributes = {"body": body.body(name, inputs, [output]), "num_scan_inputs": 3}
        scanned = [x, chosen.places, chosen.weights]
        return graph.add("Scan", scanned, attributes, name=self.name), forced

    def _token(self, graph: Graph, x: str, places: str, weights: str) -> str:
        """One token: x (D), places (K), weights (K) -> the weighted sum (D) of those experts."""
        row = graph.add("Unsqueeze", [x, graph.ints([0, 1])])
        both = self._product(graph, row, places, self.fc1)
        gate, up = f"{self.name}.gate", f"{self.name}.up"
        sizes = graph.ints([self.width, self.width])
        graph.add("Split", [both, sizes], {"axis": 2}, outputs=[gate, up])
        out = self._product(graph, graph.swiglu(gate, up), places, self.fc2)
        weighted = graph.add("Mul", [out, graph.add("Unsqueeze", [weights, graph.ints([1, 2])])])
        return graph.add("ReduceSum", [weighted, graph.ints([0, 1])], {"keepdims": 0})

    def _product(self, graph: Graph, x: str, places: str, name: str) -> str:
        """Product of x (1 or K, 1, C) and the gathered (K, C, N) -> (K, 1, N)."""
        weight = graph.add("Gather", [f"{name}.weight", places], {"axis": 0})
        if not isinstance(self.kind, Int8Rows):
            return graph.add("MatMul", [x, weight], name=name)
        scales = graph.add("Gather", [f"{name}.scales", places], {"axis": 0})
        return graph.int8_matmul(x, weight, scales, name)
