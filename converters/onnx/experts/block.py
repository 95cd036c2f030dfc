"""The expert block: the routed experts of one of the graphs, and those that every token uses.

Experts that every token uses (shared, always active) are plain MLPs beside the routed ones: they
may have more bits, and their weights follow another rule. The rule: allenai/EMO `modeling_emo.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from emo_export.converters.onnx.graph import Graph, Linear, mlp
from emo_export.model.config import EmoConfig, LayerShape


class RoutedExperts(Protocol):
    """The routed experts of one layer."""

    def add(
        self, graph: Graph, x: str, logits: str, layer: LayerShape, norm_topk: bool
    ) -> tuple[str, str]:
        """Their weighted sum (tokens, D), and the forced experts' weights (empty: weight 1).

        x (tokens, D) is normed; logits (tokens, router rows); weights (tokens, forced experts).
        """


@dataclass(frozen=True)
class ExpertBlock:
    """Everything that the graph of one expert layer refers to."""

    layer: LayerShape
    router: Linear
    routed: RoutedExperts
    forced: tuple[tuple[Linear, Linear], ...]  # (gate and up, down) of each forced expert


def expert_block(graph: Graph, x: str, block: ExpertBlock, config: EmoConfig) -> str:
    """Normed input (tokens, D) -> weighted sum of the experts' outputs (tokens, D)."""
    logits = graph.linear(x, block.router)
    total, weights = block.routed.add(graph, x, logits, block.layer, config.norm_topk_prob)
    for index, (gate_up, down) in enumerate(block.forced):
        out = mlp(graph, x, gate_up, down)
        if weights:
            weight = graph.add("Gather", [weights, graph.ints([index])], {"axis": 1})
            out = graph.add("Mul", [out, weight])
        total = graph.add("Add", [total, out])
    return total
