"""The only tensor-name table: role -> Hugging Face template -> shape.

Source: allenai/EMO `modeling_emo.py` (module tree of EmoForCausalLM).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from emo_export.model.config import EmoConfig


class Role(StrEnum):
    """What a tensor does in the model."""

    EMBED = "embed"
    ATTN_NORM = "attn_norm"
    Q = "q"
    K = "k"
    V = "v"
    O = "o"  # noqa: E741  the field's name for the attention output projection
    Q_BIAS = "q_bias"
    K_BIAS = "k_bias"
    V_BIAS = "v_bias"
    O_BIAS = "o_bias"
    FFN_NORM = "ffn_norm"
    ROUTER = "router"
    GATE = "expert_gate"
    UP = "expert_up"
    DOWN = "expert_down"
    DENSE_GATE = "dense_gate"
    DENSE_UP = "dense_up"
    DENSE_DOWN = "dense_down"
    DENSE_GATE_BIAS = "dense_gate_bias"
    DENSE_UP_BIAS = "dense_up_bias"
    DENSE_DOWN_BIAS = "dense_down_bias"
    FINAL_NORM = "final_norm"
    HEAD = "head"


TEMPLATES: dict[Role, str] = {
    Role.EMBED: "model.embed_tokens.weight",
    Role.ATTN_NORM: "model.layers.{layer}.pre_attention_layernorm.weight",
    Role.Q: "model.layers.{layer}.self_attn.q_proj.weight",
    Role.K: "model.layers.{layer}.self_attn.k_proj.weight",
    Role.V: "model.layers.{layer}.self_attn.v_proj.weight",
    Role.O: "model.layers.{layer}.self_attn.o_proj.weight",
    Role.Q_BIAS: "model.layers.{layer}.self_attn.q_proj.bias",
    Role.K_BIAS: "model.layers.{layer}.self_attn.k_proj.bias",
    Role.V_BIAS: "model.layers.{layer}.self_attn.v_proj.bias",
    Role.O_BIAS: "model.layers.{layer}.self_attn.o_proj.bias",
    Role.FFN_NORM: "model.layers.{layer}.pre_feedforward_layernorm.weight",
    Role.ROUTER: "model.layers.{layer}.mlp.gate.weight",
    Role.GATE: "model.layers.{layer}.mlp.experts.{expert}.gate_proj.weight",
    Role.UP: "model.layers.{layer}.mlp.experts.{expert}.up_proj.weight",
    Role.DOWN: "model.layers.{layer}.mlp.experts.{expert}.down_proj.weight",
    Role.DENSE_GATE: "model.layers.{layer}.mlp.gate_proj.weight",
    Role.DENSE_UP: "model.layers.{layer}.mlp.up_proj.weight",
    Role.DENSE_DOWN: "model.layers.{layer}.mlp.down_proj.weight",
    Role.DENSE_GATE_BIAS: "model.layers.{layer}.mlp.gate_proj.bias",
    Role.DENSE_UP_BIAS: "model.layers.{layer}.mlp.up_proj.bias",
    Role.DENSE_DOWN_BIAS: "model.layers.{layer}.mlp.down_proj.bias",
    Role.FINAL_NORM: "model.norm.weight",
    Role.HEAD: "lm_head.weight",
}

VECTORS = frozenset(
    {Role.ATTN_NORM, Role.FFN_NORM, Role.FINAL_NORM}
    | {role for role in Role if role.value.endswith("_bias")}
)
"""Roles that are one row; they stay in float32 in every format."""


PIECE_BYTES = 32 << 20
"""Embedding and head are handled in pieces of rows of about this size."""


@dataclass(frozen=True)
class Slot:
    """One tensor's place in the model; `layer` and `expert` are -1 where they do not apply."""

    role: Role
    layer: int = -1
    expert: int = -1

    @property
    def name(self) -> str:
        """The tensor's name in a Hugging Face checkpoint."""
        return TEMPLATES[self.role].format(layer=self.layer, expert=self.expert)


def slots(config: EmoConfig) -> Iterator[Slot]:
    """Every tensor of the model, once, in the order in which a forward pass needs them."""
    yield Slot(Role.EMBED)
    for layer in range(config.num_hidden_layers):
        yield from _attention_slots(config, layer)
        yield Slot(Role.FFN_NORM, layer)
        shape = config.layers[layer]
        if shape.is_dense:
            yield from _dense_slots(config, layer)
        else:
            yield Slot(Role.ROUTER, layer)
            for expert in range(shape.num_experts):
                for role in (Role.GATE, Role.UP, Role.DOWN):
                    yield Slot(role, layer, expert)
    yield Slot(Role.FINAL_NORM)
    if not config.tie_word_embeddings:
        yield Slot(Role.HEAD)


def _attention_slots(config: EmoConfig, layer: int) -> Iterator[Slot]:
    yield Slot(Role.ATTN_NORM, layer)
    if config.attention_bias:
        for role in (Role.Q_BIAS, Role.K_BIAS, Role.V_BIAS, Role.O_BIAS):
            yield Slot(role, layer)
    for role in (Role.Q, Role.K, Role.V, Role.O):
        yield Slot(role, layer)


def _dense_slots(config: EmoConfig, layer: int) -> Iterator[Slot]:
    if config.dense_mlp_bias:
        for role in (Role.DENSE_GATE_BIAS, Role.DENSE_UP_BIAS, Role.DENSE_DOWN_BIAS):
            yield Slot(role, layer)
    for role in (Role.DENSE_GATE, Role.DENSE_UP, Role.DENSE_DOWN):
        yield Slot(role, layer)


def shape_of(slot: Slot, config: EmoConfig) -> tuple[int, ...]:
    """The shape that the tensor must have: (out features, in features), or (features,)."""
    hidden, width = config.hidden_size, config.intermediate_size
    q_width = config.num_attention_heads * config.head_dim
    kv_width = config.num_key_value_heads * config.head_dim
    dense = config.dense_intermediate_size or 0
    experts = config.layers[slot.layer].num_experts if slot.layer >= 0 else 0
    shapes: dict[Role, tuple[int, ...]] = {
        Role.EMBED: (config.vocab_size, hidden),
        Role.HEAD: (config.vocab_size, hidden),
        Role.Q: (q_width, hidden),
        Role.K: (kv_width, hidden),
        Role.V: (kv_width, hidden),
        Role.O: (hidden, q_width),
        Role.Q_BIAS: (q_width,),
        Role.K_BIAS: (kv_width,),
        Role.V_BIAS: (kv_width,),
        Role.ROUTER: (experts, hidden),
        Role.GATE: (width, hidden),
        Role.UP: (width, hidden),
        Role.DOWN: (hidden, width),
        Role.DENSE_GATE: (dense, hidden),
        Role.DENSE_UP: (dense, hidden),
        Role.DENSE_DOWN: (hidden, dense),
        Role.DENSE_GATE_BIAS: (dense,),
        Role.DENSE_UP_BIAS: (dense,),
    }
    return shapes.get(slot.role, (hidden,))


def row_spans(slot: Slot, config: EmoConfig) -> Iterator[tuple[int, int]]:
    """The pieces (first row, end row) in which a slot travels; only embed and head have several."""
    shape = shape_of(slot, config)
    rows = 1 if slot.role in VECTORS else shape[0]
    step = rows
    if slot.role in (Role.EMBED, Role.HEAD):
        step = max(1, PIECE_BYTES // (4 * shape[-1]))
    for start in range(0, rows, step):
        yield start, min(start + step, rows)
