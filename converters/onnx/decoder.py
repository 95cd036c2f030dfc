"""The decoder around the expert blocks: embedding, attention with KV cache, norms, head.

Tokens travel as (B*T, D); only attention sees (B, T, ...). Source: the ONNX operator reference,
onnxruntime `contrib_defs.cc`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper

from emo_export.converters.onnx.attention import attention_frame, past_names, present_names
from emo_export.converters.onnx.experts.block import ExpertBlock, expert_block
from emo_export.converters.onnx.formats import Int8Rows, IntBlocks
from emo_export.converters.onnx.graph import MICROSOFT, Graph, Linear, mlp
from emo_export.files.onnx_names import ONNX_STEMS
from emo_export.model.config import EmoConfig
from emo_export.model.names import Role

KEPT = "logits_to_keep"
"""The input, named as in transformers, that says of how many last positions logits are wanted."""


@dataclass(frozen=True)
class LayerParts:
    """What the graph of one decoder layer refers to; `ffn` is its experts or its dense MLP."""

    qkv: Linear
    out: Linear
    ffn: ExpertBlock | tuple[Linear, Linear]


def build_decoder(
    graph: Graph, config: EmoConfig, layers: list[LayerParts], embed: Linear, head: Linear
) -> None:
    """Append the whole decoder: input_ids -> logits (B, n, V) and the present keys and values.

    n is `logits_to_keep` or, when that is 0, T: generation needs the last position only, and the
    head is as large as several layers.
    """
    flat = graph.add("Reshape", ["input_ids", graph.ints([-1])])
    hidden = _embedding(graph, flat, embed)
    frame = attention_frame(graph, config)
    for index, parts in enumerate(layers):
        norms = [ONNX_STEMS.name(role, index) for role in (Role.ATTN_NORM, Role.FFN_NORM)]
        normed = _norm(graph, hidden, norms[0], config)
        mixed = frame.attention(index, graph.linear(normed, parts.qkv))
        hidden, normed = _add_norm(graph, hidden, graph.linear(mixed, parts.out), norms[1], config)
        if isinstance(parts.ffn, ExpertBlock):
            out = expert_block(graph, normed, parts.ffn, config)
        else:
            out = mlp(graph, normed, *parts.ffn)
        hidden = graph.add("Add", [hidden, out], name=f"layers.{index}.residual")
    rows = graph.add("Reshape", [hidden, frame.batch_tokens])
    begin = graph.add("Neg", [KEPT])  # 0 begins at the first position
    rows = graph.add("Slice", [rows, begin, graph.ints([2**63 - 1]), graph.ints([1])])
    shape = graph.add("Shape", [rows], {"end": 2})
    shape = graph.add("Concat", [shape, graph.ints([-1])], {"axis": 0})
    kept = graph.add("Reshape", [rows, graph.ints([-1, config.hidden_size])])
    logits = graph.linear(_norm(graph, kept, ONNX_STEMS.name(Role.FINAL_NORM), config), head)
    graph.add("Reshape", [logits, shape], outputs=["logits"], name="logits")


def _embedding(graph: Graph, ids: str, embed: Linear) -> str:
    """Token ids (tokens,) -> their rows (tokens, D)."""
    if isinstance(embed.kind, Int8Rows):
        values, scales = _gathered(graph, ids, embed.name, 8)
        return graph.add("Mul", [values, scales])
    if not isinstance(embed.kind, IntBlocks):
        return graph.add("Gather", [f"{embed.name}.weight", ids], name=embed.name)
    if graph.kind.name != "qmoe":
        return _gathered_blocks(graph, ids, embed.name, embed.kind)
    attributes = {
        "bits": embed.kind.bits,
        "block_size": embed.kind.block,
        "gather_axis": 0,
        "quantize_axis": 1,
    }
    inputs = [f"{embed.name}.weight", ids, f"{embed.name}.scales"]
    return graph.add("GatherBlockQuantized", inputs, attributes, domain=MICROSOFT, name=embed.name)


def _gathered(graph: Graph, ids: str, name: str, bits: int) -> tuple[str, str]:
    """Stored values (tokens, D) less their zero point, and scales (tokens, blocks)."""
    stored = graph.add("Gather", [f"{name}.weight", ids], name=name)
    if bits == 4:
        stored = _nibbles(graph, stored)
    values = graph.add("Cast", [stored], {"to": TensorProto.FLOAT})
    values = graph.add("Sub", [values, graph.float(1 << (bits - 1))])
    return values, graph.add("Gather", [f"{name}.scales", ids])


def _nibbles(graph: Graph, stored: str) -> str:
    """Bytes (tokens, D / 2) -> their halves (tokens, D), the lower one first."""
    low = graph.add("BitwiseAnd", [stored, graph.constant("low", np.array(15, np.uint8))])
    four = graph.constant("four", np.array(4, np.uint8))
    high = graph.add("BitShift", [stored, four], {"direction": "RIGHT"})
    pair = [graph.add("Unsqueeze", [half, graph.ints([2])]) for half in (low, high)]
    both = graph.add("Concat", pair, {"axis": 2})
    return graph.add("Reshape", [both, graph.ints([0, -1])])


def _gathered_blocks(graph: Graph, ids: str, name: str, kind: IntBlocks) -> str:
    """The rows by plain operators: GatherBlockQuantized has no 8 bits in ONNX Runtime 1.22."""
    values, scales = _gathered(graph, ids, name, kind.bits)
    blocks = graph.add("Reshape", [values, graph.ints([0, -1, kind.block])])
    scales = graph.add("Unsqueeze", [scales, graph.ints([2])])
    return graph.add("Reshape", [graph.add("Mul", [blocks, scales]), graph.ints([0, -1])])


def _norm(graph: Graph, x: str, name: str, config: EmoConfig) -> str:
    """RMSNorm over the last dimension: x / sqrt(mean(x**2) + eps) * weight."""
    if graph.kind.opset >= 23:
        attributes = {"epsilon": config.rms_norm_eps, "axis": -1}
        return graph.add("RMSNormalization", [x, f"{name}.weight"], attributes, name=name)
    square = graph.add("Mul", [x, x])
    mean = graph.add("ReduceMean", [square, graph.ints([-1])], {"keepdims": 1})
    root = graph.add("Sqrt", [graph.add("Add", [mean, graph.float(config.rms_norm_eps)])])
    return graph.add("Mul", [graph.add("Div", [x, root]), f"{name}.weight"], name=name)


def _add_norm(graph: Graph, x: str, y: str, name: str, config: EmoConfig) -> tuple[str, str]:
    """(x + y, RMSNorm(x + y)), fused where an operator does both."""
    if not graph.kind.microsoft:
        total = graph.add("Add", [x, y])
        return total, _norm(graph, total, name, config)
    total, normed = f"{name}.sum", f"{name}.out"
    graph.add(
        "SkipSimplifiedLayerNormalization",
        [x, y, f"{name}.weight"],
        {"epsilon": config.rms_norm_eps},
        domain=MICROSOFT,
        outputs=[normed, "", "", total],
        name=name,
    )
    return total, normed


def decoder_inputs(config: EmoConfig) -> list[onnx.ValueInfoProto]:
    """Inputs named as optimum and onnxruntime-genai name them, and one that has a default."""
    inputs = [
        helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "tokens"]),
        helper.make_tensor_value_info("attention_mask", TensorProto.INT64, ["batch", "total"]),
    ]
    shape: list[int | str | None] = ["batch", config.num_key_value_heads, "past", config.head_dim]
    for index in range(config.num_hidden_layers):
        inputs += [
            helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n in past_names(index)
        ]
    return [*inputs, helper.make_tensor_value_info(KEPT, TensorProto.INT64, [1])]


def decoder_outputs(config: EmoConfig, *, last_only: bool = False) -> list[onnx.ValueInfoProto]:
    """Logits of the kept positions, and the keys and values to pass to the next step.

    The positions are declared as they are by default: engines that reserve the output ahead, as
    optimum's I/O binding does, size it by the dimensions of the inputs.
    """
    shape: list[int | str | None] = ["batch", config.num_key_value_heads, "total", config.head_dim]
    logits: list[int | str | None] = ["batch", 1 if last_only else "tokens", config.vocab_size]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, logits)]
    for index in range(config.num_hidden_layers):
        outputs += [
            helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n in present_names(index)
        ]
    return outputs
