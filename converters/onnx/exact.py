"""The same ONNX graph with float activations instead of int8 ones.

ONNX Runtime's own operators have a level for that. Standard operators have not: there the weights
are brought back to float and the product is a MatMul.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import onnx
from onnx import NodeProto, TensorProto, helper

SESSION_OPTIONS: Mapping[str, str] = {
    # QMoE's 8-bit fast path takes int8 activations at every accuracy level; it needs prepacked
    # weights, so without prepacking the float path runs (onnxruntime 1.31).
    "session.disable_prepacking": "1",
}


def exact_graph(model: Path) -> bytes:
    """The bytes of a model that computes in float; its data file is not read."""
    proto = onnx.load(model, load_external_data=False)
    _make_exact(proto.graph)
    return bytes(proto.SerializeToString())


def _make_exact(graph: onnx.GraphProto) -> None:
    nodes = list(_exact_nodes(graph.node))
    del graph.node[:]
    graph.node.extend(nodes)


def _exact_nodes(nodes: Iterable[NodeProto]) -> Iterator[NodeProto]:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.name == "accuracy_level":
                attribute.i = 0
            elif attribute.type == onnx.AttributeProto.GRAPH:
                _make_exact(attribute.g)
        if node.op_type == "QuantizeLinear":
            yield _unquantised(node)
        elif node.op_type == "MatMulInteger":
            yield from _float_product(node)
        else:
            yield node


def _unquantised(node: NodeProto) -> NodeProto:
    """The scaled input without rounding; the zero point goes with the product that used it."""
    return helper.make_node("Div", node.input[:2], list(node.output))


def _float_product(node: NodeProto) -> Iterator[NodeProto]:
    """The left side by the stored weights less their zero point, all in float."""
    x, weight, _, zero = node.input
    stem = f"{node.output[0]}.exact"
    for part, source in (("weight", weight), ("zero", zero)):
        yield helper.make_node("Cast", [source], [f"{stem}.{part}"], to=TensorProto.FLOAT)
    yield helper.make_node("Sub", [f"{stem}.weight", f"{stem}.zero"], [f"{stem}.difference"])
    yield helper.make_node("MatMul", [x, f"{stem}.difference"], list(node.output))
