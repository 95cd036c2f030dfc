"""The same ONNX graph with float activations instead of int8 ones.

ONNX Runtime's own operators have a level for that, all but QMoE at 2 bits: that is made to take its
float path, which is there for blocks that its tables do not serve. Standard operators have none:
there the weights are brought back to float and the product is a MatMul.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import onnx
from onnx import NodeProto, TensorProto, helper

from emo_export.files.onnx_header import read_onnx

SESSION_OPTIONS: Mapping[str, str] = {
    # QMoE's 8-bit fast path takes int8 activations at every accuracy level; it needs prepacked
    # weights, so without prepacking the float path runs (onnxruntime 1.31).
    "session.disable_prepacking": "1",
}


def exact_graph(model: Path) -> bytes:
    """The bytes of a model that computes in float; its data file is not read.

    Raises EmoExportError as `read_onnx`: onnx would wait for a pipe.
    """
    read_onnx(model)
    proto = onnx.load(model, load_external_data=False)
    _make_exact(proto.graph)
    return bytes(proto.SerializeToString())


def _make_exact(graph: onnx.GraphProto) -> None:
    columns = {tensor.name: tensor.dims[-1] for tensor in graph.initializer if tensor.dims}
    nodes = list(_exact_nodes(graph.node, columns))
    del graph.node[:]
    graph.node.extend(nodes)


def _exact_nodes(nodes: Iterable[NodeProto], columns: Mapping[str, int]) -> Iterator[NodeProto]:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.name == "accuracy_level":
                attribute.i = 0
            elif attribute.type == onnx.AttributeProto.GRAPH:
                _make_exact(attribute.g)
        if node.op_type == "QMoE":
            yield from _untabled(node, columns)
        elif node.op_type == "QuantizeLinear":
            yield _unquantised(node)
        elif node.op_type == "MatMulInteger":
            yield from _float_product(node)
        else:
            yield node


def _untabled(node: NodeProto, columns: Mapping[str, int]) -> Iterator[NodeProto]:
    """At 2 bits the same weights in blocks of 16, each scale repeated; no table takes those."""
    found = {attribute.name: attribute for attribute in node.attribute}
    if found["expert_weight_bits"].i == 2:
        repeats, found["block_size"].i = found["block_size"].i // 16, 16
        for place in (3, 6):  # the scales of fc1 and fc2
            scales = node.input[place]
            index, node.input[place] = f"{scales}.index", f"{scales}.exact"
            places = [at for at in range(columns[scales]) for _ in range(repeats)]
            yield helper.make_node("Constant", [], [index], value_ints=places)
            yield helper.make_node("Gather", [scales, index], [node.input[place]], axis=2)
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
