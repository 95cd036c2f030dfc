"""The routed experts of the `if` graph: one branch for each, taken when a token chose it.

Every operator in it has a CPU kernel since ONNX Runtime 1.22. The tokens are sorted by expert and a
branch takes its share of them, so that prefill multiplies matrices. Sorting, weighing and adding up
are done once around the branches, for in each of them they would take as long as the products. The
weights lie in the main graph, where ONNX Runtime packs and maps them as any other's.
"""

from __future__ import annotations

from dataclasses import dataclass

from onnx import TensorProto, helper

from emo_export.converters.onnx.experts.routing import Chosen, choose
from emo_export.converters.onnx.graph import Graph, Linear, mlp
from emo_export.model.config import LayerShape


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
        weights = self._by_expert(graph, x, chosen)
        # Every use of an expert by a token, the first expert's first.
        uses = graph.add("NonZero", [weights])
        tokens = graph.add("Gather", [uses, graph.ints(1)], {"axis": 0})
        rows = graph.add("Gather", [x, tokens], {"axis": 0})
        outs = self._branches(graph, rows, weights)
        use_weights = graph.add("GatherND", [weights, graph.add("Transpose", [uses])])
        outs = graph.add("Mul", [outs, graph.add("Unsqueeze", [use_weights, graph.ints([1])])])
        none = graph.add("ConstantOfShape", [graph.add("Shape", [x])])
        places = graph.add("Unsqueeze", [tokens, graph.ints([1])])
        return graph.add("ScatterND", [none, places, outs], {"reduction": "add"}), forced

    def _by_expert(self, graph: Graph, x: str, chosen: Chosen) -> str:
        """Weights (R, tokens), 0 where an expert was not chosen.

        A weight that underflowed to 0 counts as not chosen, and adds nothing either way.
        """
        tokens = graph.add("Shape", [x], {"start": 0, "end": 1})
        shape = graph.add("Concat", [tokens, graph.ints([len(self.experts)])], {"axis": 0})
        none = graph.add("ConstantOfShape", [shape])
        spread = graph.add("ScatterElements", [none, chosen.places, chosen.weights], {"axis": 1})
        return graph.add("Transpose", [spread], {"perm": [1, 0]})

    def _branches(self, graph: Graph, rows: str, weights: str) -> str:
        """Rows (uses, D), each through its own expert -> (uses, D)."""
        count = len(self.experts)
        taken = graph.add("Cast", [weights], {"to": TensorProto.BOOL})
        taken = graph.add("Cast", [taken], {"to": TensorProto.INT64})
        counts = graph.add("ReduceSum", [taken, graph.ints([1])], {"keepdims": 0})
        ends = graph.add("CumSum", [counts, graph.ints(0)])
        ends = graph.add("Concat", [graph.ints([0]), ends], {"axis": 0})
        used = [f"{self.name}.{index}.used" for index in range(count)]
        any_token = graph.add("Cast", [counts], {"to": TensorProto.BOOL})
        graph.add("Split", [any_token], {"axis": 0, "num_outputs": count}, outputs=used)
        outs = [self._branch(graph, rows, ends, used[index], index) for index in range(count)]
        return graph.add("Concat", outs, {"axis": 0})

    def _branch(self, graph: Graph, rows: str, ends: str, used: str, index: int) -> str:
        """One expert's rows (its uses, D), or none."""
        name, taken, passed = f"{self.name}.{index}", graph.inner(), graph.inner()
        begin, end = (taken.add("Gather", [ends, graph.ints([at])]) for at in (index, index + 1))
        own = taken.add("Slice", [rows, begin, end, graph.ints([0])])
        out = mlp(taken, own, *self.experts[index])
        width = self.experts[index][1].rows
        none = passed.add("ConstantOfShape", [graph.ints([0, width])])
        branches = {
            "then_branch": _ending(taken, out, f"{name}.then"),
            "else_branch": _ending(passed, none, f"{name}.else"),
        }
        return graph.add("If", [used], branches, name=name)


def _ending(graph: Graph, value: str, name: str) -> object:
    """A branch without inputs whose only output is `value` (uses, D)."""
    output = helper.make_tensor_value_info(value, TensorProto.FLOAT, [None, None])
    return graph.body(name, [], [output])
