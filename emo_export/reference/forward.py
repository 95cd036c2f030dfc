"""EMO's forward pass as functions of tensors, in float32 with eager attention.

Source: allenai/EMO `modeling_emo.py`. Letters: T tokens, D hidden, F expert width, E experts, K
experts per token, H heads, C columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

from emo_export.model.config import EmoConfig, LayerShape
from emo_export.model.names import Role

Tensor = torch.Tensor
Weights = Mapping[Role, Tensor]
"""The weights of one step: matrices (N, C), norms and biases (C,)."""


@dataclass
class KeyValues:
    """Keys and values of one sequence, per layer: (KV heads, T, head size)."""

    keys: dict[int, Tensor] = field(default_factory=dict)
    values: dict[int, Tensor] = field(default_factory=dict)

    @property
    def length(self) -> int:
        """Tokens cached so far."""
        return self.keys[0].shape[1] if self.keys else 0

    def length_of(self, layer: int) -> int:
        """Tokens cached so far in one layer."""
        return self.keys[layer].shape[1] if layer in self.keys else 0

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Add new positions and return all of them."""
        if layer in self.keys:
            keys = torch.cat([self.keys[layer], keys], dim=1)
            values = torch.cat([self.values[layer], values], dim=1)
        self.keys[layer], self.values[layer] = keys, values
        return keys, values

    def cut(self, length: int) -> None:
        """Forget what comes after so many tokens."""
        for held in (self.keys, self.values):
            for layer, tensor in held.items():
                held[layer] = tensor[:, :length]


@dataclass(frozen=True)
class Routing:
    """Which experts each token uses and with what weight: (T, K) each."""

    experts: Tensor
    weights: Tensor

    def uses(self, expert: int) -> tuple[Tensor, Tensor]:
        """The tokens (n,) that use an expert, and its weights for them (n, 1)."""
        tokens, place = torch.where(self.experts == expert)
        return tokens, self.weights[tokens, place, None]


def norm(hidden: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm of (T, D)."""
    variance = hidden.pow(2).mean(-1, keepdim=True)
    return weight * (hidden * torch.rsqrt(variance + eps))


def heads(projected: Tensor, size: int) -> Tensor:
    """(T, H * size) -> (H, T, size)."""
    return projected.view(len(projected), -1, size).transpose(0, 1)


def rotate(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions of (H, T, size): the first half of a head pairs with its second half."""
    first, second = states.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def attention(
    normed: Tensor,
    weights: Weights,
    config: EmoConfig,
    layer: int,
    angles: tuple[Tensor, Tensor],
    cache: KeyValues | None,
) -> Tensor:
    """One sequence (T, D) -> its mixed values (T, H * head size), the input of o.

    `angles` are the cosines and sines (positions, head size / 2) from the first position on; with a
    cache the sequence continues what is in it.
    """
    size, past = config.head_dim, cache.length_of(layer) if cache else 0
    cos, sin = (table[past : past + len(normed)] for table in angles)
    q, k, v = (
        heads(F.linear(normed, weights[role], weights.get(bias)), size)
        for role, bias in ((Role.Q, Role.Q_BIAS), (Role.K, Role.K_BIAS), (Role.V, Role.V_BIAS))
    )
    q, k = rotate(q, cos, sin), rotate(k, cos, sin)
    if cache is not None:
        k, v = cache.append(layer, k, v)
    groups = config.num_attention_heads // config.num_key_value_heads
    k, v = (t.repeat_interleave(groups, dim=0) for t in (k, v))
    scores = q @ k.transpose(1, 2) * size**-0.5
    future = torch.ones(scores.shape[1:], dtype=torch.bool, device=scores.device)
    scores.masked_fill_(future.triu(1 + past), -torch.inf)
    return (F.softmax(scores, dim=-1) @ v).transpose(0, 1).flatten(1)


def route(logits: Tensor, layer: LayerShape, norm_topk_prob: bool) -> Routing:
    """Choose experts from router logits (T, E), exactly as EmoSparseMoeBlock.forward does.

    Always-active experts: one softmax over all. Shared experts: a softmax of their own. Weights are
    not renormalised unless `norm_topk_prob` (which allows neither).
    """
    forced = torch.tensor(layer.forced, dtype=torch.int64, device=logits.device)
    taken = forced.expand(logits.shape[0], -1)
    if layer.always_active_experts:
        scores = F.softmax(logits, dim=1)
        open_scores = scores.clone()
        open_scores[:, forced] = -torch.inf
        chosen = torch.topk(open_scores, layer.num_routed_per_tok, dim=-1).indices
        experts = torch.cat([taken, chosen], dim=1)
        return Routing(experts, scores.gather(1, experts))
    split = layer.num_experts - len(layer.forced)
    scores = F.softmax(logits[:, :split], dim=1)
    weights, chosen = torch.topk(scores, layer.num_routed_per_tok, dim=-1)
    if norm_topk_prob:
        weights = weights / weights.sum(dim=-1, keepdim=True)
    shared = F.softmax(logits[:, split:], dim=1)
    return Routing(torch.cat([chosen, taken], dim=1), torch.cat([weights, shared], dim=1))


def gated(normed: Tensor, weights: Weights) -> Tensor:
    """silu(gate x) * up x of an expert or a dense MLP: (T, D) -> (T, F), the input of down."""
    if Role.GATE in weights:
        return F.silu(F.linear(normed, weights[Role.GATE])) * F.linear(normed, weights[Role.UP])
    gate = F.linear(normed, weights[Role.DENSE_GATE], weights.get(Role.DENSE_GATE_BIAS))
    return F.silu(gate) * F.linear(normed, weights[Role.DENSE_UP], weights.get(Role.DENSE_UP_BIAS))
