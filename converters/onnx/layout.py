"""What a graph's external data holds and where each weight goes, declared before any is read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from emo_export.converters.onnx.data import ExternalData, ReadRows
from emo_export.converters.onnx.decoder import LayerParts
from emo_export.converters.onnx.experts.block import ExpertBlock, RoutedExperts
from emo_export.converters.onnx.experts.if_ import BranchedExperts
from emo_export.converters.onnx.experts.qmoe import FusedExperts
from emo_export.converters.onnx.experts.routing import router_rows
from emo_export.converters.onnx.experts.standard import GatheredExperts
from emo_export.converters.onnx.formats import Int8Rows, IntBlocks
from emo_export.converters.onnx.graph import Linear
from emo_export.converters.onnx.kinds import Kind
from emo_export.files.onnx_names import ANGLES, ONNX_STEMS
from emo_export.files.tensor_names import Form
from emo_export.interfaces import Packed
from emo_export.model.config import EmoConfig
from emo_export.model.names import Role, Slot, shape_of
from emo_export.model.scheme import QuantScheme

GATE_UP = (Role.GATE, Role.UP)
Placed = Iterator[tuple[str, int, Any]]


@dataclass(frozen=True)
class Place:
    """Where the rows of a slot go: an initializer's stem and its first row there."""

    stem: str
    row: int = 0


class Stack(Protocol):
    """All routed experts of a layer in a few initializers, gate and up as one matrix."""

    @property
    def fc1(self) -> str:
        """The stem of gate and up; down's has the same elements."""

    def gate_up(self, place: int, gate: Packed, up: Packed) -> Placed:
        """(initializer, first row, rows) of the expert at a place."""

    def down(self, place: int, packed: Packed) -> Placed:
        """(initializer, first row, rows) of the expert at a place."""

    def stored(self, role: Role, place: int, part: str, read: ReadRows) -> Any:
        """The other way round: what lies there of one matrix of the expert at a place."""


class Layout:
    """Declares every initializer; knows the place of every weight and the parts of the decoder.

    A slot is in `places`, or in `stacks` with its expert's place there.
    """

    def __init__(
        self,
        kind: Kind,
        config: EmoConfig,
        scheme: QuantScheme,
        context: int,
        split: bool = False,
    ) -> None:
        """`split` is that of ExternalData."""
        self.data = ExternalData(split)
        self.places: dict[Slot, Place] = {}
        self.stacks: dict[Slot, tuple[Stack, int]] = {}
        self._kind, self._config, self._scheme = kind, config, scheme
        self.embed, self.head = self._ends()
        self.layers = [self._layer(index) for index in range(config.num_hidden_layers)]
        for name in ANGLES:
            self.data.declare(name, "f32", (context, config.head_dim // 2), context)

    def _linear(self, name: str, stacked: Sequence[Slot], biases: Sequence[Slot] = ()) -> Linear:
        """Declare a matrix made of the rows of several slots (of one format), and its bias."""
        rows = 0
        for slot in stacked:
            self.places[slot] = Place(name, rows)
            rows += shape_of(slot, self._config)[0]
        row = 0
        for slot in biases:
            self.places[slot] = Place(f"{name}.bias", row)
            row += shape_of(slot, self._config)[0]
        cols = shape_of(stacked[0], self._config)[-1]
        linear = Linear(name, rows, cols, self._scheme.format_of(stacked[0]), bool(biases))
        linear.declare(self.data)
        return linear

    def _vector(self, slot: Slot) -> None:
        name, width = f"{_stem(slot)}.weight", self._config.hidden_size
        self.data.declare(name, "f32", (width,), width)
        self.places[slot] = Place(name)

    def _ends(self) -> tuple[Linear, Linear]:
        """Embedding, head and final norm; a tied head is the embedding under a second name."""
        config, slot = self._config, Slot(Role.EMBED)
        name, head_name = _stem(slot), _stem(Slot(Role.HEAD))
        embed = Linear(name, config.vocab_size, config.hidden_size, self._scheme.format_of(slot))
        tied = config.tie_word_embeddings
        head = self._linear(head_name, [slot if tied else Slot(Role.HEAD)])
        if not tied:
            self.places[slot] = Place(name)
        # The gather wants two dimensions where a product wants another number, over the same bytes.
        shapes = {"weight": ("f32", (embed.rows, embed.cols))}
        if isinstance(embed.kind, IntBlocks):
            blocks = embed.cols // embed.kind.block
            shapes["weight"] = ("u8", (embed.rows, embed.cols * embed.kind.bits // 8))
            shapes["scales"] = ("f32", (embed.rows, blocks))
        elif isinstance(embed.kind, Int8Rows):
            shapes = {
                "weight": ("u8", (embed.rows, embed.cols)),
                "scales": ("f32", (embed.rows, 1)),
            }
        for part, (element, shape) in shapes.items():
            if tied:
                self.data.alias(f"{name}.{part}", element, shape, f"{head_name}.{part}")
            else:
                self.data.declare(f"{name}.{part}", element, shape, embed.rows)
        self._vector(Slot(Role.FINAL_NORM))
        return embed, head

    def _layer(self, index: int) -> LayerParts:
        config = self._config
        self._vector(Slot(Role.ATTN_NORM, index))
        self._vector(Slot(Role.FFN_NORM, index))
        biased = config.attention_bias
        qkv_bias = (Role.Q_BIAS, Role.K_BIAS, Role.V_BIAS) if biased else ()
        qkv = self._linear(
            _stem(Slot(Role.Q, index)),
            [Slot(role, index) for role in (Role.Q, Role.K, Role.V)],
            [Slot(role, index) for role in qkv_bias],
        )
        out_bias = [Slot(Role.O_BIAS, index)] if biased else []
        o = Slot(Role.O, index)
        out = self._linear(_stem(o), [o], out_bias)
        dense = config.layers[index].is_dense
        return LayerParts(qkv, out, self._dense(index) if dense else self._experts(index))

    def _dense(self, index: int) -> tuple[Linear, Linear]:
        biased, down = self._config.dense_mlp_bias, Slot(Role.DENSE_DOWN, index)
        in_bias = (Role.DENSE_GATE_BIAS, Role.DENSE_UP_BIAS) if biased else ()
        gate_up = self._linear(
            _stem(Slot(Role.DENSE_UP, index)),
            [Slot(role, index) for role in (Role.DENSE_GATE, Role.DENSE_UP)],
            [Slot(role, index) for role in in_bias],
        )
        out_bias = [Slot(Role.DENSE_DOWN_BIAS, index)] if biased else []
        return gate_up, self._linear(_stem(down), [down], out_bias)

    def _experts(self, index: int) -> ExpertBlock:
        config, layer = self._config, self._config.layers[index]
        slot = Slot(Role.ROUTER, index)
        rows, kind = len(router_rows(layer)), self._scheme.format_of(slot)
        router = Linear(_stem(slot), rows, config.hidden_size, kind)
        router.declare(self.data)
        self.places[slot] = Place(router.name)
        forced = self._pairs(index, layer.forced, Form.SHARED)
        return ExpertBlock(layer, router, self._routed(index), forced)

    def _pairs(
        self, index: int, experts: Sequence[int], form: Form
    ) -> tuple[tuple[Linear, Linear], ...]:
        """(gate and up, down) of each expert, as matrices of their own."""

        def linear(expert: int, *roles: Role) -> Linear:
            stacked = [Slot(role, index, expert) for role in roles]
            return self._linear(_stem(stacked[0], form), stacked)

        return tuple((linear(e, *GATE_UP), linear(e, Role.DOWN)) for e in experts)

    def _routed(self, index: int) -> RoutedExperts:
        config, layer, name = self._config, self._config.layers[index], f"layers.{index}.experts"
        if self._kind.name == "if":
            return BranchedExperts(name, self._pairs(index, layer.routed, Form.OWN))
        kind = self._scheme.format_of(Slot(Role.UP, index, layer.routed[0]))
        fc1, fc2 = (_stem(Slot(role, index), Form.STACK) for role in (Role.UP, Role.DOWN))
        shape = len(layer.routed), config.hidden_size, config.intermediate_size
        form = FusedExperts if self._kind.name == "qmoe" else GatheredExperts
        stack = form(name, fc1, fc2, *shape, kind)
        stack.declare(self.data)
        for place, expert in enumerate(layer.routed):
            for role in (*GATE_UP, Role.DOWN):
                self.stacks[Slot(role, index, expert)] = stack, place
        return stack


def _stem(slot: Slot, form: Form = Form.OWN) -> str:
    return ONNX_STEMS.name(slot.role, slot.layer, slot.expert, form)
