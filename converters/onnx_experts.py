"""The expert block of the `qmoe` graph.

Routed experts go through com.microsoft.MoE (float32) or QMoE (int4, int8), which gather the chosen
experts at run time. Experts that every token uses (shared, always active) are plain MLPs beside it:
they may have more bits, and their weights follow another rule. Source: onnxruntime
`moe_cpu.cc`, `moe_quantization_cpu.cc`, `contrib_defs.cc`; the rule: allenai/EMO `modeling_emo.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from emo_export.config import EmoConfig, LayerShape
from emo_export.converters.nbits_formats import IntBlocks
from emo_export.converters.onnx_data import ExternalData
from emo_export.converters.onnx_graph import MICROSOFT, Graph, Linear
from emo_export.interfaces import Format

_SWIGLU: dict[str, Any] = {
    "activation_type": "swiglu",
    "swiglu_fusion": 1,  # rows of gate and up interleaved
    "activation_alpha": 1.0,
    "activation_beta": 0.0,
}


@dataclass(frozen=True)
class ExpertStack:
    """The routed experts of a layer: fc1 (R, 2F, D) with gate and up interleaved, fc2 (R, D, F)."""

    name: str
    experts: int
    hidden: int
    width: int
    kind: Format

    def declare(self, data: ExternalData) -> None:
        """Reserve both stacks and their scales."""
        for part, rows, cols in (
            ("fc1", 2 * self.width, self.hidden),
            ("fc2", self.hidden, self.width),
        ):
            total, name = self.experts * rows, f"{self.name}.{part}"
            if isinstance(self.kind, IntBlocks):
                stored = (self.experts, rows, cols * self.kind.bits // 8)
                data.declare(f"{name}.weight", "u8", stored, total)
                scales = (self.experts, rows, cols // self.kind.block)
                data.declare(f"{name}.scales", "f32", scales, total)
            else:
                data.declare(f"{name}.weight", "f32", (self.experts, rows, cols), total)


@dataclass(frozen=True)
class ExpertBlock:
    """Everything that the graph of one expert layer refers to."""

    layer: LayerShape
    router: Linear
    stack: ExpertStack
    forced: tuple[tuple[Linear, Linear], ...]  # (gate and up, down) of each forced expert


def router_rows(layer: LayerShape) -> tuple[int, ...]:
    """The router rows that a graph needs: a single shared expert has weight 1 whatever its row."""
    single = layer.num_shared_experts == 1 and not layer.always_active_experts
    return layer.routed if single else tuple(range(layer.num_experts))


def expert_block(graph: Graph, x: str, block: ExpertBlock, config: EmoConfig) -> str:
    """Normed input (tokens, D) -> weighted sum of the experts' outputs (tokens, D)."""
    logits = graph.linear(x, block.router)
    share: str | None = None
    weights: str | None
    if block.layer.always_active_experts:
        logits, share, weights = _always_active(graph, logits, block.layer)
    else:
        logits, weights = _shared(graph, logits, block.layer)
    total = _routed(graph, x, logits, block.stack, block.layer, config.norm_topk_prob)
    if share is not None:
        total = graph.add("Mul", [total, share])
    for index, (gate_up, down) in enumerate(block.forced):
        out = mlp(graph, x, gate_up, down)
        if weights is not None:
            weight = graph.add("Gather", [weights, graph.ints([index])], {"axis": 1})
            out = graph.add("Mul", [out, weight])
        total = graph.add("Add", [total, out])
    return total


def mlp(graph: Graph, x: str, gate_up: Linear, down: Linear) -> str:
    """down(silu(gate x) * up x), with gate and up stored as one matrix."""
    both = graph.linear(x, gate_up)
    width = gate_up.rows // 2
    gate, up = f"{gate_up.name}.gate", f"{gate_up.name}.up"
    graph.add("Split", [both, graph.ints([width, width])], {"axis": 1}, outputs=[gate, up])
    return graph.linear(graph.swiglu(gate, up), down)


def _shared(graph: Graph, logits: str, layer: LayerShape) -> tuple[str, str | None]:
    """Routed logits, and the weights (tokens, S) of the shared experts (None: weight 1)."""
    if layer.num_shared_experts <= 1:
        return logits, None
    split = len(layer.routed)
    shared = graph.add(
        "Slice", [logits, graph.ints([split]), graph.ints([layer.num_experts]), graph.ints([1])]
    )
    routed = graph.add("Slice", [logits, graph.ints([0]), graph.ints([split]), graph.ints([1])])
    return routed, graph.add("Softmax", [shared], {"axis": 1})


def _always_active(graph: Graph, logits: str, layer: LayerShape) -> tuple[str, str, str]:
    """Routed logits, the probability left to the routed experts, and the forced experts' weights.

    One softmax runs over all experts; MoE takes its own over the routed ones, so what it returns is
    scaled by their share of the probability.
    """
    scores = graph.add("Softmax", [logits], {"axis": 1})
    forced = graph.add("Gather", [scores, graph.ints(list(layer.forced))], {"axis": 1})
    routed = graph.add("Gather", [logits, graph.ints(list(layer.routed))], {"axis": 1})
    others = graph.add("Gather", [scores, graph.ints(list(layer.routed))], {"axis": 1})
    share = graph.add("ReduceSum", [others, graph.ints([1])], {"keepdims": 1})
    return routed, share, forced


def _routed(
    graph: Graph, x: str, logits: str, stack: ExpertStack, layer: LayerShape, norm_topk: bool
) -> str:
    """Weights are a softmax over all routed logits, the K largest taken and not renormalised."""
    k, fc1, fc2 = layer.num_routed_per_tok, f"{stack.name}.fc1", f"{stack.name}.fc2"
    attributes = _SWIGLU | {"k": k, "normalize_routing_weights": 0}
    if not isinstance(stack.kind, IntBlocks):
        attributes["normalize_routing_weights"] = int(norm_topk)
        inputs = [x, logits, f"{fc1}.weight", "", f"{fc2}.weight"]
        return graph.add("MoE", inputs, attributes, domain=MICROSOFT, name=stack.name)
    # Without router_weights QMoE would take a softmax over the K chosen logits alone.
    weights = graph.add("Softmax", [logits], {"axis": 1})
    if norm_topk:
        top = f"{stack.name}.top"
        graph.add("TopK", [weights, graph.ints([k])], {"axis": 1}, outputs=[top, f"{top}.index"])
        total = graph.add("ReduceSum", [top, graph.ints([1])], {"keepdims": 1})
        weights = graph.add("Div", [weights, total])
    attributes |= {
        "expert_weight_bits": stack.kind.bits,
        "block_size": stack.kind.block,
        "accuracy_level": graph.accuracy_level,
    }
    inputs = [x, logits, f"{fc1}.weight", f"{fc1}.scales", "", f"{fc2}.weight", f"{fc2}.scales"]
    inputs += [""] * 7 + [weights]
    return graph.add("QMoE", inputs, attributes, domain=MICROSOFT, name=stack.name)
