"""The routed experts of the `if` graph: one branch for each, taken when a token chose it.

Every operator in it has a CPU kernel since ONNX Runtime 1.22. A branch gathers the tokens of its
expert, so that prefill multiplies matrices; its weights lie in the main graph, where ONNX Runtime
packs and maps them as any other's.
"""

from __future__ import annotations

from dataclasses import dataclass

from onnx import TensorProto, helper

from emo_export.config import LayerShape
from emo_export.converters.onnx_graph import Graph, Linear, mlp
from emo_export.converters.onnx_routing import Chosen, choose


@dataclass(frozen=True)
class BranchedExperts:
    """(gate and up, down) of each routed expert of a layer."""

    name: str
    experts: tuple[tuple[Linear, Linear], ...]

    def add(
        self, graph: Graph, x: str, logits: str, layer: LayerShape, norm_topk: bool
    ) -> tuple[str, str]:
        """Normed x (tokens, D) -> the weighted sum (tokens, D), and the forced experts' weights."""
        chosen, forced = choose(graph, logits, layer, norm_topk)
        weights, used = self._by_expert(graph, x, chosen)
        total = graph.add("ConstantOfShape", [graph.add("Shape", [x])])
        for index in range(len(self.experts)):
            total = self._branch(graph, x, total, weights, used[index], index)
        return total, forced

    def _by_expert(self, graph: Graph, x: str, chosen: Chosen) -> tuple[str, list[str]]:
        """Weights (R, tokens), 0 where an expert was not chosen; whether anyone chose each (1)."""
        count = len(self.experts)
        tokens = graph.add("Shape", [x], {"start": 0, "end": 1})
        shape = graph.add("Concat", [tokens, graph.ints([count])], {"axis": 0})
        none = graph.add("ConstantOfShape", [shape])
        spread = graph.add("ScatterElements", [none, chosen.places, chosen.weights], {"axis": 1})
        weights = graph.add("Transpose", [spread], {"perm": [1, 0]})
        most = graph.add("ReduceMax", [weights, graph.ints([1])], {"keepdims": 0})
        any_token = graph.add("Cast", [most], {"to": TensorProto.BOOL})
        used = [f"{self.name}.{index}.used" for index in range(count)]
        graph.add("Split", [any_token], {"axis": 0, "num_outputs": count}, outputs=used)
        return weights, used

    def _branch(self, graph: Graph, x: str, total: str, weights: str, used: str, index: int) -> str:
        """The total with one expert's part added to the tokens that chose it."""
        name, taken, passed = f"{self.name}.{index}", graph.inner(), graph.inner()
        own = taken.add("Gather", [weights, graph.ints(index)], {"axis": 0})
        # A weight that underflowed to 0 counts as not chosen, and adds nothing either way.
        tokens = taken.add("Transpose", [taken.add("NonZero", [own])], {"perm": [1, 0]})
        rows = taken.add("GatherND", [x, tokens])
        out = mlp(taken, rows, *self.experts[index])
        out = taken.add("Mul", [out, taken.add("Gather", [own, tokens])])
        out = taken.add("ScatterND", [total, tokens, out], {"reduction": "add"})
        branches = {
            "then_branch": _ending(taken, out, f"{name}.then"),
            "else_branch": _ending(passed, passed.add("Identity", [total]), f"{name}.else"),
        }
        return graph.add("If", [used], branches, name=name)


def _ending(graph: Graph, value: str, name: str) -> object:
    """A branch without inputs whose only output is `value` (tokens, D)."""
    output = helper.make_tensor_value_info(value, TensorProto.FLOAT, [None, None])
    return graph.body(name, [], [output])
