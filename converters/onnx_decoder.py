"""The decoder around the expert blocks: embedding, attention with KV cache, norms, head.

Tokens travel as (B*T, D); only attention sees (B, T, ...). GroupQueryAttention is used for the head
sizes that it takes (multiples of 16), opset 23's RotaryEmbedding and Attention for others. Source:
onnxruntime `group_query_attention_helper.h`, the ONNX operator reference.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper

from emo_export.config import EmoConfig
from emo_export.converters.nbits_formats import IntBlocks
from emo_export.converters.onnx_experts import ExpertBlock, expert_block, mlp
from emo_export.converters.onnx_graph import MICROSOFT, Graph, Linear

MASKED = -1e9


@dataclass(frozen=True)
class LayerParts:
    """What the graph of one decoder layer refers to; `ffn` is its experts or its dense MLP."""

    qkv: Linear
    out: Linear
    ffn: ExpertBlock | tuple[Linear, Linear]


def uses_gqa(config: EmoConfig) -> bool:
    """Tell whether ONNX Runtime's GroupQueryAttention takes this head size."""
    return config.head_dim % 16 == 0


def build_decoder(
    graph: Graph, config: EmoConfig, layers: list[LayerParts], embed: Linear, head: Linear
) -> None:
    """Append the whole decoder: input_ids -> logits (B, T, V) and the present keys and values."""
    flat = graph.add("Reshape", ["input_ids", graph.ints([-1])])
    hidden = _embedding(graph, flat, embed)
    frame = _Frame(graph, config)
    for index, parts in enumerate(layers):
        stem = f"layers.{index}"
        normed = _norm(graph, hidden, f"{stem}.attn_norm", config)
        mixed = frame.attention(index, graph.linear(normed, parts.qkv))
        hidden, normed = _add_norm(
            graph, hidden, graph.linear(mixed, parts.out), f"{stem}.ffn_norm", config
        )
        if isinstance(parts.ffn, ExpertBlock):
            out = expert_block(graph, normed, parts.ffn, config)
        else:
            out = mlp(graph, normed, *parts.ffn)
        hidden = graph.add("Add", [hidden, out], name=f"{stem}.residual")
    logits = graph.linear(_norm(graph, hidden, "final_norm", config), head)
    graph.add("Reshape", [logits, frame.batch_tokens], outputs=["logits"], name="logits")


def _embedding(graph: Graph, ids: str, embed: Linear) -> str:
    if not isinstance(embed.kind, IntBlocks):
        return graph.add("Gather", ["embed.weight", ids], name="embed")
    attributes = {
        "bits": embed.kind.bits,
        "block_size": embed.kind.block,
        "gather_axis": 0,
        "quantize_axis": 1,
    }
    inputs = ["embed.weight", ids, "embed.scales"]
    return graph.add("GatherBlockQuantized", inputs, attributes, domain=MICROSOFT, name="embed")


def _norm(graph: Graph, x: str, name: str, config: EmoConfig) -> str:
    attributes = {"epsilon": config.rms_norm_eps, "axis": -1}
    return graph.add("RMSNormalization", [x, f"{name}.weight"], attributes, name=name)


def _add_norm(graph: Graph, x: str, y: str, name: str, config: EmoConfig) -> tuple[str, str]:
    """(x + y, RMSNorm(x + y)), fused."""
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


class _Frame:
    """The shapes, masks and positions that every layer's attention shares."""

    def __init__(self, graph: Graph, config: EmoConfig) -> None:
        self._graph, self._config = graph, config
        zero, one = graph.ints([0]), graph.ints([1])
        shape = graph.add("Shape", ["input_ids"])
        batch = graph.add("Gather", [shape, zero], {"axis": 0})
        self._tokens = graph.add("Gather", [shape, one], {"axis": 0})
        self.batch_tokens = graph.add("Concat", [shape, graph.ints([-1])], {"axis": 0})
        self._total = graph.add("Gather", [graph.add("Shape", ["attention_mask"]), one])
        kept = graph.add("Cast", ["attention_mask"], {"to": TensorProto.FLOAT})
        padding = graph.add(
            "Mul", [graph.add("Sub", [self._float(1.0), kept]), self._float(MASKED)]
        )
        padding = graph.add("Unsqueeze", [padding, graph.ints([1, 2])])
        wide = graph.add("Concat", [batch, one, self._tokens, self._total], {"axis": 0})
        self._bias = graph.add("Expand", [padding, wide])
        self._gqa = uses_gqa(config)
        if self._gqa:
            # Left padding: every row ends at total-1, and the bias hides what is padded.
            last = graph.add(
                "Cast", [graph.add("Sub", [self._total, one])], {"to": TensorProto.INT32}
            )
            self._last = graph.add("Expand", [last, batch])
            total = graph.add("Squeeze", [self._total, zero])
            self._total32 = graph.add("Cast", [total], {"to": TensorProto.INT32})
        else:
            self._causal(batch)

    def _float(self, value: float) -> str:
        return self._graph.constant(f"float_{value}", np.array(value, dtype=np.float32))

    def _causal(self, batch: str) -> None:
        """Positions (B, T) and the additive mask (B, 1, T, total) of the standard operators."""
        graph, zero = self._graph, self._graph.ints(0)
        total = graph.add("Squeeze", [self._total, graph.ints([0])])
        past = graph.add("Sub", [total, graph.add("Squeeze", [self._tokens, graph.ints([0])])])
        keys = graph.add("Range", [zero, total, graph.ints(1)])
        queries = graph.add("Range", [past, total, graph.ints(1)])
        column = graph.add("Unsqueeze", [queries, graph.ints([1])])
        future = graph.add("Greater", [keys, column])
        hidden = graph.add("Where", [future, self._float(MASKED), self._float(0.0)])
        self._bias = graph.add("Add", [self._bias, hidden])
        wide = graph.add("Concat", [batch, self._tokens], {"axis": 0})
        self._positions = graph.add("Expand", [queries, wide])

    def attention(self, index: int, qkv: str) -> str:
        """Projected q, k, v side by side (B*T, ...) -> mixed heads (B*T, H * head size)."""
        graph = self._graph
        packed = graph.add("Reshape", [qkv, self.batch_tokens])
        mixed = self._fused(index, packed) if self._gqa else self._standard(index, packed)
        width = self._config.num_attention_heads * self._config.head_dim
        return graph.add("Reshape", [mixed, graph.ints([-1, width])])

    def _fused(self, index: int, packed: str) -> str:
        inputs = [
            packed,
            "",
            "",
            *_past(index),
            self._last,
            self._total32,
            "cos",
            "sin",
            "",
            self._bias,
        ]
        attributes = {
            "num_heads": self._config.num_attention_heads,
            "kv_num_heads": self._config.num_key_value_heads,
            "do_rotary": 1,
        }
        name = f"layers.{index}.attention"
        outputs = [f"{name}.out", *_present(index)]
        return self._graph.add(
            "GroupQueryAttention", inputs, attributes, domain=MICROSOFT, outputs=outputs, name=name
        )

    def _standard(self, index: int, packed: str) -> str:
        graph, config, name = self._graph, self._config, f"layers.{index}.attention"
        heads, kv = config.num_attention_heads, config.num_key_value_heads
        sizes = graph.ints([heads * config.head_dim, kv * config.head_dim, kv * config.head_dim])
        parts = [f"{name}.{part}" for part in "qkv"]
        graph.add("Split", [packed, sizes], {"axis": 2}, outputs=parts)
        query, key, value = (
            graph.add(
                "Transpose",
                [graph.add("Reshape", [part, graph.ints([0, 0, count, config.head_dim])])],
                {"perm": [0, 2, 1, 3]},
            )
            for part, count in zip(parts, (heads, kv, kv), strict=True)
        )
        query, key = (
            graph.add("RotaryEmbedding", [x, "cos", "sin", self._positions]) for x in (query, key)
        )
        inputs = [query, key, value, self._bias, *_past(index)]
        mixed = graph.add(
            "Attention", inputs, outputs=[f"{name}.heads", *_present(index)], name=name
        )
        return graph.add("Transpose", [mixed], {"perm": [0, 2, 1, 3]})


def _past(index: int) -> list[str]:
    return [f"past_key_values.{index}.{part}" for part in ("key", "value")]


def _present(index: int) -> list[str]:
    return [f"present.{index}.{part}" for part in ("key", "value")]


def decoder_inputs(config: EmoConfig) -> list[onnx.ValueInfoProto]:
    """Inputs named as optimum and onnxruntime-genai name them."""
    inputs = [
        helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "tokens"]),
        helper.make_tensor_value_info("attention_mask", TensorProto.INT64, ["batch", "total"]),
    ]
    shape: list[int | str | None] = ["batch", config.num_key_value_heads, "past", config.head_dim]
    for index in range(config.num_hidden_layers):
        inputs += [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n in _past(index)]
    return inputs


def decoder_outputs(config: EmoConfig) -> list[onnx.ValueInfoProto]:
    """Logits of every position, and the keys and values to pass to the next step."""
    shape: list[int | str | None] = ["batch", config.num_key_value_heads, "total", config.head_dim]
    logits: list[int | str | None] = ["batch", "tokens", config.vocab_size]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, logits)]
    for index in range(config.num_hidden_layers):
        outputs += [
            helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n in _present(index)
        ]
    return outputs
