"""Attention with a KV cache, in the three ways that the graphs need.

GroupQueryAttention does rotation, cache and attention in one and writes the cache in place; it
takes head sizes that are multiples of 16. RotaryEmbedding and Attention are standard since opset
23. Below that the same is spelt out. Source: onnxruntime `group_query_attention_helper.h`, the ONNX
operator reference.

A row of a batch computes what its real tokens compute alone, whichever side its padding is on:
optimum pads on the left, onnxruntime-genai on the right.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from onnx import TensorProto

from emo_export.converters.onnx.graph import MICROSOFT, Graph
from emo_export.files.onnx_names import ANGLES
from emo_export.model.config import EmoConfig

MASKED = -1e9


def past_names(index: int) -> list[str]:
    """The graph's inputs: keys and values (B, heads, past, head size) of a layer."""
    return [f"past_key_values.{index}.{part}" for part in ("key", "value")]


def present_names(index: int) -> list[str]:
    """The graph's outputs: keys and values (B, heads, total, head size) of a layer."""
    return [f"present.{index}.{part}" for part in ("key", "value")]


def attention_frame(graph: Graph, config: EmoConfig) -> Attention:
    """The way of attention that this kind of graph takes for this model."""
    if graph.kind.uses_gqa(config):
        return FusedAttention(graph, config)
    return StandardAttention(graph, config) if graph.kind.opset >= 23 else SpeltOut(graph, config)


class Attention(ABC):
    """What every layer's attention shares: shapes, positions, and the mask as a bias."""

    def __init__(self, graph: Graph, config: EmoConfig) -> None:
        self._graph, self._config = graph, config
        zero, one = graph.ints([0]), graph.ints([1])
        shape = graph.add("Shape", ["input_ids"])
        self._batch = graph.add("Gather", [shape, zero], {"axis": 0})
        self._tokens = graph.add("Gather", [shape, one], {"axis": 0})
        self.batch_tokens = graph.add("Concat", [shape, graph.ints([-1])], {"axis": 0})
        self._total = graph.add("Gather", [graph.add("Shape", ["attention_mask"]), one])
        real = graph.add("Cast", ["attention_mask"], {"to": TensorProto.BOOL})
        self._positions = self._positions_of(real)  # (B, T)
        hidden = graph.add("Where", [real, graph.float(0.0), graph.float(MASKED)])
        hidden = graph.add("Unsqueeze", [hidden, graph.ints([1, 2])])
        wide = graph.add("Concat", [self._batch, one, self._tokens, self._total], {"axis": 0})
        self._bias = graph.add("Expand", [hidden, wide])  # (B, 1, T, total)

    @abstractmethod
    def _positions_of(self, real: str) -> str:
        """Real tokens (B, total) -> rotary positions of the last T: (B, T)."""

    def _preceding(self, counted: str) -> str:
        """Bool (B, total) -> how many of a row's come before each column: int64 (B, total)."""
        ones = self._graph.add("Cast", [counted], {"to": TensorProto.INT64})
        return self._graph.add("CumSum", [ones, self._graph.ints(1)], {"exclusive": 1})

    def _latest(self, columns: str) -> str:
        """(B, total) -> the last T of each row: (B, T)."""
        add, ints = self._graph.add, self._graph.ints
        begin = add("Neg", [self._tokens])
        return add("Slice", [columns, begin, ints([2**63 - 1]), ints([1])])

    def attention(self, index: int, qkv: str) -> str:
        """Projected q, k, v side by side (B*T, ...) -> mixed heads (B*T, H * head size)."""
        graph = self._graph
        mixed = self._mixed(index, graph.add("Reshape", [qkv, self.batch_tokens]))
        width = self._config.num_attention_heads * self._config.head_dim
        return graph.add("Reshape", [mixed, graph.ints([-1, width])])

    @abstractmethod
    def _mixed(self, index: int, packed: str) -> str:
        """Packed (B, T, (H + 2 kv) * head size) -> mixed (B, T, ...); the cache moves on."""


class FusedAttention(Attention):
    """com.microsoft.GroupQueryAttention."""

    def __init__(self, graph: Graph, config: EmoConfig) -> None:
        super().__init__(graph, config)
        # Every row ends at total-1, and the bias hides what is padded.
        last = graph.add("Sub", [self._total, graph.ints([1])])
        last = graph.add("Cast", [last], {"to": TensorProto.INT32})
        self._ends = graph.add("Expand", [last, self._batch])
        total = graph.add("Squeeze", [self._total, graph.ints([0])])
        self._total32 = graph.add("Cast", [total], {"to": TensorProto.INT32})

    def _positions_of(self, real: str) -> str:
        """A prompt is rotated by column, so a later token continues its row's columns.

        GroupQueryAttention reads position_ids after a past only (`rotary_params` in onnxruntime
        `group_query_attention.cc`). Columns count until a row's right padding begins.
        """
        add, ints = self._graph.add, self._graph.ints
        none_yet = add("Equal", [self._preceding(real), ints(0)])
        positions = self._preceding(add("Or", [real, none_yet]))
        self._refuse_holes(real, positions)
        return self._latest(positions)

    def _refuse_holes(self, real: str, positions: str) -> None:
        """Fail on a prompt that is padded between real tokens, which the rotation can't follow."""
        add, ints = self._graph.add, self._graph.ints
        columns = add("Range", [ints(0), add("Squeeze", [self._total, ints([0])]), ints(1)])
        skipped = add("Where", [real, add("Sub", [columns, positions]), ints(0)])
        skipped = add("ReduceMax", [skipped], {"keepdims": 0})
        is_prompt = add("Equal", [self._total, self._tokens])
        beyond = add("Where", [is_prompt, skipped, ints(0)])
        # An index out of range is an error; this name is in ONNX Runtime's message.
        name = "attention_mask_has_padding_between_tokens"
        self._total = add("Gather", [self._total, beyond], name=name)

    def _mixed(self, index: int, packed: str) -> str:
        ends = [self._ends, self._total32, *ANGLES, self._positions, self._bias]
        attributes = {
            "num_heads": self._config.num_attention_heads,
            "kv_num_heads": self._config.num_key_value_heads,
            "do_rotary": 1,
        }
        name = f"layers.{index}.attention"
        return self._graph.add(
            "GroupQueryAttention",
            [packed, "", "", *past_names(index), *ends],
            attributes,
            domain=MICROSOFT,
            outputs=[f"{name}.out", *present_names(index)],
            name=name,
        )


class StandardAttention(Attention):
    """RotaryEmbedding and Attention of opset 23; padding may be anywhere."""

    def __init__(self, graph: Graph, config: EmoConfig) -> None:
        super().__init__(graph, config)
        zero = graph.ints(0)
        total = graph.add("Squeeze", [self._total, graph.ints([0])])
        past = graph.add("Sub", [total, graph.add("Squeeze", [self._tokens, graph.ints([0])])])
        keys = graph.add("Range", [zero, total, graph.ints(1)])
        queries = graph.add("Range", [past, total, graph.ints(1)])
        column = graph.add("Unsqueeze", [queries, graph.ints([1])])
        future = graph.add("Greater", [keys, column])
        hidden = graph.add("Where", [future, graph.float(MASKED), graph.float(0.0)])
        self._bias = graph.add("Add", [self._bias, hidden])
        # Gather checks its indices in every ONNX Runtime, RotaryEmbedding of 1.23 does not.
        self._cos, self._sin = (graph.add("Gather", [table, self._positions]) for table in ANGLES)

    def _positions_of(self, real: str) -> str:
        return self._latest(self._preceding(real))

    def _mixed(self, index: int, packed: str) -> str:
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
        mixed = self._attend(index, self._rotated(query), self._rotated(key), value)
        return graph.add("Transpose", [mixed], {"perm": [0, 2, 1, 3]})

    def _rotated(self, x: str) -> str:
        return self._graph.add("RotaryEmbedding", [x, self._cos, self._sin])

    def _attend(self, index: int, query: str, key: str, value: str) -> str:
        """Query (B, H, T, head size), key and value (B, kv, T, head size) -> (B, H, T, ...)."""
        name = f"layers.{index}.attention"
        inputs = [query, key, value, self._bias, *past_names(index)]
        outputs = [f"{name}.heads", *present_names(index)]
        return self._graph.add("Attention", inputs, outputs=outputs, name=name)


class SpeltOut(StandardAttention):
    """The same in operators that ONNX Runtime had before opset 23."""

    def __init__(self, graph: Graph, config: EmoConfig) -> None:
        super().__init__(graph, config)
        self._cos, self._sin = (
            graph.add("Unsqueeze", [rows, graph.ints([1])]) for rows in (self._cos, self._sin)
        )  # (B, 1, T, head size / 2)

    def _rotated(self, x: str) -> str:
        """Feature i turns with feature i + head size / 2."""
        add, half = self._graph.add, self._config.head_dim // 2
        first, second = f"{x}.first", f"{x}.second"
        add("Split", [x, self._graph.ints([half, half])], {"axis": 3}, outputs=[first, second])
        turned = [
            add(op, [add("Mul", [a, self._cos]), add("Mul", [b, self._sin])])
            for op, a, b in (("Sub", first, second), ("Add", second, first))
        ]
        return add("Concat", turned, {"axis": 3})

    def _attend(self, index: int, query: str, key: str, value: str) -> str:
        graph, config = self._graph, self._config
        size, kv = config.head_dim, config.num_key_value_heads
        kept = [
            graph.add("Concat", [past, new], {"axis": 2}, outputs=[present])
            for past, new, present in zip(
                past_names(index), (key, value), present_names(index), strict=True
            )
        ]
        # (B, kv, heads that share a key, T, head size) against (B, kv, 1, total, head size)
        groups = config.num_attention_heads // kv
        apart = graph.ints([0, kv, groups, -1, size])
        query = graph.add("Reshape", [query, apart])
        keys, values = (graph.add("Unsqueeze", [x, graph.ints([2])]) for x in kept)
        keys = graph.add("Transpose", [keys], {"perm": [0, 1, 2, 4, 3]})
        scores = graph.add("Mul", [graph.add("MatMul", [query, keys]), graph.float(size**-0.5)])
        bias = graph.add("Unsqueeze", [self._bias, graph.ints([1])])
        shares = graph.add("Softmax", [graph.add("Add", [scores, bias])], {"axis": 4})
        mixed = graph.add("MatMul", [shares, values], name=f"layers.{index}.attention")
        return graph.add("Reshape", [mixed, graph.ints([0, config.num_attention_heads, -1, size])])
