"""Which experts a token uses, and with which weights. The rule: allenai/EMO `modeling_emo.py`."""

from __future__ import annotations

from dataclasses import dataclass

from emo_export.converters.onnx.graph import Graph
from emo_export.model.config import LayerShape


def router_rows(layer: LayerShape) -> tuple[int, ...]:
    """The router rows that a graph needs: a single shared expert has weight 1 whatever its row."""
    single = layer.num_shared_experts == 1 and not layer.always_active_experts
    return layer.routed if single else tuple(range(layer.num_experts))


@dataclass(frozen=True)
class Chosen:
    """The routed experts of each token: their places (tokens, K) and weights (tokens, K)."""

    places: str
    weights: str


def choose(graph: Graph, logits: str, layer: LayerShape, norm_topk: bool) -> tuple[Chosen, str]:
    """The routed experts of each token, and the weights of the forced (empty: weight 1).

    Router logits (tokens, router rows); forced weights (tokens, forced experts).
    """
    if layer.always_active_experts:
        scores = graph.add("Softmax", [logits], {"axis": 1})
        forced = graph.add("Gather", [scores, graph.ints(list(layer.forced))], {"axis": 1})
        scores = graph.add("Gather", [scores, graph.ints(list(layer.routed))], {"axis": 1})
    else:
        routed, forced = split_shared(graph, logits, layer)
        scores = graph.add("Softmax", [routed], {"axis": 1})
    count = graph.ints([layer.num_routed_per_tok])
    weights, places = f"{scores}.top", f"{scores}.places"
    graph.add("TopK", [scores, count], {"axis": 1}, outputs=[weights, places])
    if norm_topk:
        total = graph.add("ReduceSum", [weights, graph.ints([1])], {"keepdims": 1})
        weights = graph.add("Div", [weights, total])
    return Chosen(places, weights), forced


def split_shared(graph: Graph, logits: str, layer: LayerShape) -> tuple[str, str]:
    """Routed logits, and the weights (tokens, S) of the shared experts (empty: weight 1)."""
    if layer.num_shared_experts <= 1:
        return logits, ""
    split = len(layer.routed)
    shared = graph.add(
        "Slice", [logits, graph.ints([split]), graph.ints([layer.num_experts]), graph.ints([1])]
    )
    routed = graph.add("Slice", [logits, graph.ints([0]), graph.ints([split]), graph.ints([1])])
    return routed, graph.add("Softmax", [shared], {"axis": 1})
