"""The torch reference: EMO's published forward pass, fed one weight at a time.

A `ReferenceRun` holds the hidden states of its token batches and is a sink of weights in the order
of `names.slots`. It applies each weight when it arrives and lets it go, so that the largest thing
in memory is one matrix. Source: allenai/EMO `modeling_emo.py` (float32, eager attention).
Letters: B batch, T tokens, D hidden, F expert width, E experts, H heads, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F

from emo_export.errors import EmoExportError
from emo_export.interfaces import F32, Ids
from emo_export.model.config import EmoConfig, LayerShape
from emo_export.model.names import VECTORS, Role, Slot
from emo_export.model.rope import cos_sin

Tensor = torch.Tensor

FEW_TOKENS = 64
"""Up to so many tokens the embedding is read row by row."""


@dataclass
class KeyValues:
    """Keys and values of one sequence, per layer: (kv heads, T, head size)."""

    keys: dict[int, Tensor] = field(default_factory=dict)
    values: dict[int, Tensor] = field(default_factory=dict)

    @property
    def length(self) -> int:
        """Tokens cached so far."""
        return self.keys[0].shape[1] if self.keys else 0

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Add new positions and return all of them."""
        if layer in self.keys:
            keys = torch.cat([self.keys[layer], keys], dim=1)
            values = torch.cat([self.values[layer], values], dim=1)
        self.keys[layer], self.values[layer] = keys, values
        return keys, values


@dataclass(frozen=True)
class Routing:
    """Which expert each token uses and with what weight: (tokens, K) each."""

    experts: Tensor
    weights: Tensor


def route(logits: Tensor, layer: LayerShape, norm_topk_prob: bool) -> Routing:
    """Choose experts from router logits (tokens, E), exactly as EmoSparseMoeBlock.forward does.

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


class ReferenceRun:
    """One forward pass over some sequences, fed with the weights of one variant of the model.

    `sequences` are token ids (T,), each by itself. With `cache` given (for one sequence), positions
    continue those in it. `on_logits(sequence, first row of the vocabulary, logits (T, rows))`
    receives the head's output in pieces of the vocabulary, `on_router(layer, logits (tokens, E))`
    the router's for all tokens of all sequences in order.
    """

    def __init__(
        self,
        config: EmoConfig,
        sequences: Sequence[Ids],
        on_logits: Callable[[int, int, F32], None],
        *,
        cache: KeyValues | None = None,
        device: str = "cpu",
        on_router: Callable[[int, F32], None] | None = None,
    ) -> None:
        self.config = config
        self.device = torch.device(device)
        self._on_logits, self._on_router = on_logits, on_router
        self._cache = cache
        self._past = cache.length if cache else 0
        longest = self._past + max(len(ids) for ids in sequences)
        if longest > config.context_length():
            raise EmoExportError(
                f"{longest} tokens exceed the context of {config.context_length()}"
            )
        self._ids = torch.from_numpy(np.concatenate(sequences).astype(np.int64)).to(device)
        ends = np.cumsum([len(ids) for ids in sequences])
        self._spans = [slice(end - len(i), end) for end, i in zip(ends, sequences, strict=True)]
        cos, sin = cos_sin(config, longest)
        self._cos, self._sin = (torch.from_numpy(t).to(device) for t in (cos, sin))
        self._hidden = torch.zeros(len(self._ids), config.hidden_size, device=device)
        self._normed = self._hidden  # input of q, k, v; then of the router and the MLPs
        self._inner = self._hidden  # input of o, then of down
        self._routing: Routing | None = None
        self._held: dict[Role, Tensor] = {}
        self._tied: list[tuple[int, Tensor]] = []

    def wants(self, slot: Slot) -> bool:
        """Tell whether a weight is needed: an expert that no token of this run uses is not."""
        if slot.expert < 0 or self._routing is None:
            return True
        return bool((self._routing.experts == slot.expert).any())

    def rows_needed(self, slot: Slot) -> list[tuple[int, int]]:
        """The rows of the embedding that a few tokens need; empty when all rows are."""
        few = len(self._ids) <= FEW_TOKENS and not self.config.tie_word_embeddings
        if slot.role != Role.EMBED or not few:
            return []
        return [(token, token + 1) for token in sorted(set(self._ids.tolist()))]

    @torch.no_grad()
    def feed(self, slot: Slot, start: int, weight: F32) -> None:
        """Take rows of a weight (rows, C) from row `start`; only embed and head come in pieces."""
        tensor = torch.from_numpy(np.ascontiguousarray(weight)).to(self.device)
        role = slot.role
        if role == Role.EMBED:
            self._embed(start, tensor)
        elif role == Role.HEAD:
            self._head(start, tensor)
        elif role == Role.FINAL_NORM:
            self._finish(tensor[0])
        else:
            self._held[role] = tensor[0] if role in VECTORS else tensor
            self._advance(slot)

    def input_of(self, slot: Slot) -> Tensor | None:
        """The inputs (n, C) of the matrix of a slot, once every slot before it was fed.

        None for what is looked up rather than multiplied, and where nothing is measured: embedding,
        router, norms, biases.
        """
        role = slot.role
        if role in (Role.Q, Role.K, Role.V, Role.DENSE_GATE, Role.DENSE_UP):
            return self._normed
        if role == Role.DOWN and not self.wants(slot):  # nor were its gate and up fed
            return torch.empty(0, self.config.intermediate_size)
        if role in (Role.O, Role.DOWN, Role.DENSE_DOWN):
            return self._inner
        if role == Role.HEAD:
            return self._hidden
        if role in (Role.GATE, Role.UP) and self._routing is not None:
            return self._normed[torch.where(self._routing.experts == slot.expert)[0]]
        return None

    def _advance(self, slot: Slot) -> None:
        """Compute as soon as the last weight of a step is here."""
        if slot.role == Role.ATTN_NORM:
            self._normed = self._norm(self._hidden, self._held.pop(Role.ATTN_NORM))
        elif slot.role == Role.V:
            self._inner = torch.cat([self._attention(slot.layer, span) for span in self._spans])
        elif slot.role == Role.O:
            self._hidden += F.linear(self._inner, self._held[Role.O], self._held.get(Role.O_BIAS))
        elif slot.role == Role.FFN_NORM:
            self._normed = self._norm(self._hidden, self._held.pop(Role.FFN_NORM))
            self._routing = None
        elif slot.role == Role.ROUTER:
            logits = F.linear(self._normed, self._held.pop(Role.ROUTER))
            if self._on_router is not None:
                self._on_router(slot.layer, logits.cpu().numpy())
            shape = self.config.layers[slot.layer]
            self._routing = route(logits, shape, self.config.norm_topk_prob)
        elif slot.role == Role.UP and self._routing is not None:
            tokens = torch.where(self._routing.experts == slot.expert)[0]
            self._inner = self._gated(self._normed[tokens], Role.GATE, Role.UP)
        elif slot.role == Role.DOWN and self._routing is not None:
            self._expert(slot.expert, self._routing)
        elif slot.role == Role.DENSE_UP:
            self._inner = self._gated(self._normed, Role.DENSE_GATE, Role.DENSE_UP)
        elif slot.role == Role.DENSE_DOWN:
            held = self._held
            down = F.linear(self._inner, held[Role.DENSE_DOWN], held.get(Role.DENSE_DOWN_BIAS))
            self._hidden += down

    def _norm(self, hidden: Tensor, weight: Tensor) -> Tensor:
        variance = hidden.pow(2).mean(-1, keepdim=True)
        return weight * (hidden * torch.rsqrt(variance + self.config.rms_norm_eps))

    def _embed(self, start: int, rows: Tensor) -> None:
        if self.config.tie_word_embeddings:
            self._tied.append((start, rows))
        inside = (self._ids >= start) & (self._ids < start + rows.shape[0])
        self._hidden[inside] = rows[self._ids[inside] - start]

    def _attention(self, layer: int, span: slice) -> Tensor:
        """One sequence's mixed values (T, H * head size), the input of o."""
        held, normed = self._held, self._normed[span]
        query = self._rotate(F.linear(normed, held[Role.Q], held.get(Role.Q_BIAS)))
        key = self._rotate(F.linear(normed, held[Role.K], held.get(Role.K_BIAS)))
        value = self._split(F.linear(normed, held[Role.V], held.get(Role.V_BIAS)))
        if self._cache is not None:
            key, value = self._cache.append(layer, key, value)
        groups = self.config.num_attention_heads // self.config.num_key_value_heads
        key, value = (t.repeat_interleave(groups, dim=0) for t in (key, value))
        scores = query @ key.transpose(1, 2) * self.config.head_dim**-0.5
        future = torch.ones(scores.shape[1:], dtype=torch.bool, device=self.device)
        scores.masked_fill_(future.triu(1 + self._past), -torch.inf)
        return (F.softmax(scores, dim=-1) @ value).transpose(0, 1).flatten(1)

    def _split(self, projected: Tensor) -> Tensor:
        """(T, H * head size) -> (H, T, head size)."""
        return projected.view(len(projected), -1, self.config.head_dim).transpose(0, 1)

    def _rotate(self, projected: Tensor) -> Tensor:
        """Split into heads and rotate: the first half of a head pairs with its second half."""
        heads = self._split(projected)
        cos, sin = (t[self._past : self._past + heads.shape[1]] for t in (self._cos, self._sin))
        first, second = heads.chunk(2, dim=-1)
        return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)

    def _gated(self, normed: Tensor, gate: Role, up: Role) -> Tensor:
        """silu(gate x) * up x of an MLP: the input of its down projection."""
        held = self._held
        gate_bias = held.get(Role.DENSE_GATE_BIAS) if gate == Role.DENSE_GATE else None
        up_bias = held.get(Role.DENSE_UP_BIAS) if up == Role.DENSE_UP else None
        opened = F.silu(F.linear(normed, held.pop(gate), gate_bias))
        return opened * F.linear(normed, held.pop(up), up_bias)

    def _expert(self, expert: int, routing: Routing) -> None:
        tokens, place = torch.where(routing.experts == expert)
        out = F.linear(self._inner, self._held.pop(Role.DOWN))
        self._hidden.index_add_(0, tokens, out * routing.weights[tokens, place, None])

    def _finish(self, norm: Tensor) -> None:
        self._held.clear()
        self._hidden = self._norm(self._hidden, norm)
        tied, self._tied = self._tied, []
        for start, rows in tied:
            self._head(start, rows)

    def _head(self, start: int, rows: Tensor) -> None:
        for index, span in enumerate(self._spans):
            logits = F.linear(self._hidden[span], rows)
            self._on_logits(index, start, logits.cpu().numpy())
