"""The same ONNX graph at accuracy level 0: float activations instead of int8 ones."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx

SESSION_OPTIONS: Mapping[str, str] = {
    # QMoE's 8-bit fast path takes int8 activations at every accuracy level; it needs prepacked
    # weights, so without prepacking the float path runs (onnxruntime 1.31).
    "session.disable_prepacking": "1",
}


def exact_graph(model: Path) -> bytes:
    """The bytes of a model whose every `accuracy_level` is 0; its data file is not read."""
    proto = onnx.load(model, load_external_data=False)
    _lower(proto.graph)
    return bytes(proto.SerializeToString())


def _lower(graph: onnx.GraphProto) -> None:
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.name == "accuracy_level":
                attribute.i = 0
            elif attribute.type == onnx.AttributeProto.GRAPH:
                _lower(attribute.g)
