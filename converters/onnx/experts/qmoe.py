"""The routed experts of the `qmoe` graph: one operator that gathers the chosen at run time.

com.microsoft.MoE for float32, QMoE for int8, int4 and int2. Source: onnxruntime `moe_cpu.cc`,
`moe_quantization_cpu.cc`, `contrib_defs.cc`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from emo_export.converters.onnx.data import ExternalData, ReadRows
from emo_export.converters.onnx.experts.routing import split_shared
from emo_export.converters.onnx.formats import IntBlocks
from emo_export.converters.onnx.graph import MICROSOFT, Graph
from emo_export.interfaces import F32, Format, Packed
from emo_export.model.config import LayerShape
from emo_export.model.names import Role

_SWIGLU: dict[str, Any] = {
    "activation_type": "swiglu",
    "swiglu_fusion": 1,  # rows of gate and up interleaved
    "activation_alpha": 1.0,
    "activation_beta": 0.0,
}


@dataclass(frozen=True)
class FusedExperts:
    """The routed experts of a layer: fc1 (R, 2F, D) with gate and up interleaved, fc2 (R, D, F)."""

    name: str
    fc1: str
    fc2: str
    experts: int
    hidden: int
    width: int
    kind: Format

    def declare(self, data: ExternalData) -> None:
        """Reserve both stacks and their scales."""
        for name, rows, cols in (
            (self.fc1, 2 * self.width, self.hidden),
            (self.fc2, self.hidden, self.width),
        ):
            total = self.experts * rows
            if isinstance(self.kind, IntBlocks):
                stored = (self.experts, rows, cols * self.kind.bits // 8)
                data.declare(f"{name}.weight", "u8", stored, total)
                scales = (self.experts, rows, cols // self.kind.block)
                data.declare(f"{name}.scales", "f32", scales, total)
            else:
                data.declare(f"{name}.weight", "f32", (self.experts, rows, cols), total)

    def gate_up(self, place: int, gate: Packed, up: Packed) -> Iterator[tuple[str, int, F32]]:
        """(initializer, first row, rows) of an expert: gate 0, up 0, gate 1, up 1, … in fc1."""
        for part, rows in up.items():
            both = np.stack([gate[part], rows], axis=1).reshape(-1, *rows.shape[1:])
            yield f"{self.fc1}.{part}", place * 2 * self.width, both

    def down(self, place: int, packed: Packed) -> Iterator[tuple[str, int, F32]]:
        """(initializer, first row, rows) of an expert's down matrix."""
        for part, rows in packed.items():
            yield f"{self.fc2}.{part}", place * self.hidden, rows

    def stored(self, role: Role, place: int, part: str, read: ReadRows) -> Any:
        """`part` of the matrix of a role of the expert at a place, as `Format` packs it."""
        if role == Role.DOWN:
            start = place * self.hidden
            return read(f"{self.fc2}.{part}", start, start + self.hidden)
        start = place * 2 * self.width
        both = read(f"{self.fc1}.{part}", start, start + 2 * self.width)
        return both[(0 if role == Role.GATE else 1) :: 2]

    def add(
        self, graph: Graph, x: str, logits: str, layer: LayerShape, norm_topk: bool
    ) -> tuple[str, str]:
        """Normed x (tokens, D) -> the weighted sum (tokens, D), and the forced experts' weights.

        The operators take their softmax over the routed logits alone. Where one runs over all
        experts (always active ones), the sum is scaled by the routed experts' share of it.
        """
        if not layer.always_active_experts:
            routed, forced = split_shared(graph, logits, layer)
            return self._operator(graph, x, routed, layer, norm_topk), forced
        routed, share, forced = _always_active(graph, logits, layer)
        total = self._operator(graph, x, routed, layer, norm_topk)
        return graph.add("Mul", [total, share]), forced

    def _operator(
        self, graph: Graph, x: str, logits: str, layer: LayerShape, norm_topk: bool
    ) -> str:
        """Weights are a softmax over all routed logits, the K largest taken, not renormalised."""
        k, fc1, fc2 = layer.num_routed_per_tok, self.fc1, self.fc2
        attributes = _SWIGLU | {"k": k, "normalize_routing_weights": 0}
        if not isinstance(self.kind, IntBlocks):
            attributes["normalize_routing_weights"] = int(norm_topk)
            inputs = [x, logits, f"{fc1}.weight", "", f"{fc2}.weight"]
            return graph.add("MoE", inputs, attributes, domain=MICROSOFT, name=self.name)
        # Without router_weights QMoE would take a softmax over the K chosen logits alone.
        weights = graph.add("Softmax", [logits], {"axis": 1})
        if norm_topk:
            top = f"{self.name}.top"
            graph.add(
                "TopK", [weights, graph.ints([k])], {"axis": 1}, outputs=[top, f"{top}.index"]
            )
            total = graph.add("ReduceSum", [top, graph.ints([1])], {"keepdims": 1})
            weights = graph.add("Div", [weights, total])
        attributes |= {
            "expert_weight_bits": self.kind.bits,
            "block_size": self.kind.block,
            "accuracy_level": graph.accuracy_level,
        }
        inputs = [x, logits, f"{fc1}.weight", f"{fc1}.scales", "", f"{fc2}.weight", f"{fc2}.scales"]
        inputs += [""] * 7 + [weights]
        return graph.add("QMoE", inputs, attributes, domain=MICROSOFT, name=self.name)


def _always_active(graph: Graph, logits: str, layer: LayerShape) -> tuple[str, str, str]:
    """Routed logits, the routed experts' share of all probability, and the forced weights."""
    scores = graph.add("Softmax", [logits], {"axis": 1})
    forced = graph.add("Gather", [scores, graph.ints(list(layer.forced))], {"axis": 1})
    routed = graph.add("Gather", [logits, graph.ints(list(layer.routed))], {"axis": 1})
    others = graph.add("Gather", [scores, graph.ints(list(layer.routed))], {"axis": 1})
    share = graph.add("ReduceSum", [others, graph.ints([1])], {"keepdims": 1})
    return routed, share, forced
