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


class Kind(StrEnum):
    """What a step computes."""

    EMBED = "embed"  # token ids -> hidden
    QKV = "qkv"  # normed -> queries, keys and values -> the mixed values
    ATTENTION_OUT = "attention_out"  # mixed values -> hidden
    ROUTER = "router"  # normed -> the experts of each token
    GATE_UP = "gate_up"  # normed -> silu(gate x) * up x
    DOWN = "down"  # that -> hidden
    HEAD = "head"  # hidden -> logits


@dataclass(frozen=True)
class Step:
    """Weights that share one input, with the norm before it and the biases beside it.

    `expert` is -1 where the step is no expert's.
    """

    kind: Kind
    layer: int
    expert: int
    slots: tuple[Slot, ...]


@dataclass(frozen=True)
class Block:
    """The steps of the embedding (`layer` -1), of one layer, or of the head (`layer` L).

    A block may be gone through more than once: it only says what to read.
    """

    layer: int
    steps: tuple[Step, ...]


def blocks(config: EmoConfig) -> Iterator[Block]:
    """The whole model in the order of a forward pass.

    A tied head is read a second time, as `Slot(Role.HEAD)`, which such a model does not store.
    """
    yield Block(-1, (Step(Kind.EMBED, -1, -1, (Slot(Role.EMBED),)),))
    for layer in range(config.num_hidden_layers):
        yield Block(layer, tuple(_layer_steps(config, layer)))
    head = Step(Kind.HEAD, -1, -1, (Slot(Role.FINAL_NORM), Slot(Role.HEAD)))
    yield Block(config.num_hidden_layers, (head,))


def slots(config: EmoConfig) -> Iterator[Slot]:
    """Every tensor of the model, once, in the order in which a forward pass needs them."""
    for block in blocks(config):
        for step in block.steps:
            for slot in step.slots:
                if slot.role != Role.HEAD or not config.tie_word_embeddings:
                    yield slot


def _layer_steps(config: EmoConfig, layer: int) -> Iterator[Step]:
    def step(kind: Kind, *roles: Role, expert: int = -1) -> Step:
        return Step(kind, layer, expert, tuple(Slot(role, layer, expert) for role in roles))

    biased, dense_biased = config.attention_bias, config.dense_mlp_bias
    bias: tuple[Role, ...] = (Role.Q_BIAS, Role.K_BIAS, Role.V_BIAS) if biased else ()
    yield step(Kind.QKV, Role.ATTN_NORM, *bias, Role.Q, Role.K, Role.V)
    yield step(Kind.ATTENTION_OUT, *((Role.O_BIAS,) if biased else ()), Role.O)
    shape = config.layers[layer]
    if shape.is_dense:
        bias = (Role.DENSE_GATE_BIAS, Role.DENSE_UP_BIAS) if dense_biased else ()
        yield step(Kind.GATE_UP, Role.FFN_NORM, *bias, Role.DENSE_GATE, Role.DENSE_UP)
        bias = (Role.DENSE_DOWN_BIAS,) if dense_biased else ()
        yield step(Kind.DOWN, *bias, Role.DENSE_DOWN)
        return
    yield step(Kind.ROUTER, Role.FFN_NORM, Role.ROUTER)
    for expert in range(shape.num_experts):
        yield step(Kind.GATE_UP, Role.GATE, Role.UP, expert=expert)
        yield step(Kind.DOWN, Role.DOWN, expert=expert)


_HIDDEN = (Role.ATTN_NORM, Role.FFN_NORM, Role.FINAL_NORM, Role.O_BIAS, Role.DENSE_DOWN_BIAS)
"""Vectors of the hidden size."""


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
        **dict.fromkeys(_HIDDEN, (hidden,)),
    }
    return shapes[slot.role]


STACKS: dict[str, tuple[Role, ...]] = {
    "model.layers.{layer}.mlp.experts.gate_up_proj": (Role.GATE, Role.UP),
    "model.layers.{layer}.mlp.experts.down_proj": (Role.DOWN,),
}
"""The experts of a layer in one tensor (E, rows, columns), the roles' rows one after the other.

Source: transformers 5, `OlmoeExperts` (gate, up = linear(x, gate_up_proj[e]).chunk(2)).
"""


@dataclass(frozen=True)
class Stack:
    """A tensor that holds the matrices of a layer's experts: of each expert, these roles."""

    name: str
    layer: int
    shape: tuple[int, int, int]
    roles: tuple[Role, ...]

    def parts(self) -> Iterator[tuple[Slot, int, int, int]]:
        """Each slot in it, with its expert, first row and end row."""
        rows = self.shape[1] // len(self.roles)
        for expert in range(self.shape[0]):
            for index, role in enumerate(self.roles):
                yield Slot(role, self.layer, expert), expert, index * rows, (index + 1) * rows


def stacks(config: EmoConfig) -> Iterator[Stack]:
    """The stacks that a checkpoint may have in place of its experts' own tensors."""
    for layer, shape in enumerate(config.layers):
        for template, roles in STACKS.items() if not shape.is_dense else ():
            rows, cols = shape_of(Slot(roles[0], layer, 0), config)
            size = (shape.num_experts, len(roles) * rows, cols)
            yield Stack(template.format(layer=layer), layer, size, roles)


def row_spans(slot: Slot, config: EmoConfig) -> Iterator[tuple[int, int]]:
    """The pieces (first row, end row) in which a slot travels; only embed and head have several."""
    shape = shape_of(slot, config)
    rows = 1 if slot.role in VECTORS else shape[0]
    step = rows
    if slot.role in (Role.EMBED, Role.HEAD):
        step = max(1, PIECE_BYTES // (4 * shape[-1]))
    for start in range(0, rows, step):
        yield start, min(start + step, rows)
