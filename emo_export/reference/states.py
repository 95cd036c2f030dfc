"""The hidden states of one variant of the model over some token sequences, carried step by step.

A variant is a set of weights: the original, a pruned float model, what a quantiser left. It holds
what the next step needs and no weight. Letters: T tokens of all sequences, D hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F

from emo_export.errors import EmoExportError
from emo_export.interfaces import Ids
from emo_export.model.config import EmoConfig
from emo_export.model.names import Kind, Role, Step
from emo_export.model.rope import cos_sin
from emo_export.reference.forward import (
    KeyValues,
    Routing,
    Tensor,
    Weights,
    attention,
    gated,
    norm,
    route,
)


@dataclass
class States:
    """What one variant has computed so far, for the T tokens of all sequences.

    `hidden` (T, D); `normed` (T, D), the input of q, k, v, then of router, gate and up; `inner`,
    the input of o, then of down; `logits` (T, E) and `routing` of the router; `out` (n, D) what the
    last expert gave its n tokens, before the router's weight.

    `States.of` makes those before the embedding. `copy` keeps a layer's states aside, so that the
    layer can be tried again with other weights.
    """

    config: EmoConfig
    ids: Tensor
    spans: tuple[slice, ...]
    angles: tuple[Tensor, Tensor]
    cache: KeyValues | None
    hidden: Tensor
    normed: Tensor
    inner: Tensor
    logits: Tensor | None = None
    routing: Routing | None = None
    out: Tensor | None = None

    @classmethod
    def of(
        cls,
        config: EmoConfig,
        sequences: Sequence[Ids],
        *,
        cache: KeyValues | None = None,
        device: str = "cpu",
    ) -> States:
        """Of token ids (T,) each, every sequence by itself.

        With `cache` (for one sequence), positions continue those in it. Raises EmoExportError for
        a sequence longer than the context.
        """
        longest = (cache.length if cache else 0) + max(len(ids) for ids in sequences)
        if longest > config.context_length():
            raise EmoExportError(
                f"{longest} tokens exceed the context of {config.context_length()}"
            )
        ends = np.cumsum([len(ids) for ids in sequences])
        spans = tuple(slice(end - len(i), end) for end, i in zip(ends, sequences, strict=True))
        cos, sin = (torch.from_numpy(table).to(device) for table in cos_sin(config, longest))
        hidden = torch.zeros(int(ends[-1]), config.hidden_size, device=device)
        ids = torch.from_numpy(np.concatenate(sequences).astype(np.int64)).to(device)
        return cls(config, ids, spans, (cos, sin), cache, hidden, hidden, hidden)

    def copy(self) -> States:
        """The same states, which `advance` on these leaves alone (those with a cache can't be)."""
        if self.cache is not None:
            raise ValueError("states with a KV cache cannot be kept aside")
        return replace(self, hidden=self.hidden.clone())

    def uses(self, step: Step) -> bool:
        """Whether any token needs the weights: an expert that none chose has no work."""
        if step.expert < 0 or self.routing is None:
            return True
        return bool((self.routing.experts == step.expert).any())

    def inputs(self, step: Step) -> Tensor:
        """What the matrices of a step multiply: (n, C), n the tokens that use it.

        To be asked when every step before it has been taken. For q, k, v, the router and a dense
        MLP, whose norm belongs to the step, the norm must have been taken (`take_norm`).
        """
        if step.kind == Kind.HEAD:
            return self.hidden
        if step.kind in (Kind.QKV, Kind.ROUTER):
            return self.normed
        if step.kind == Kind.ATTENTION_OUT:
            return self.inner
        if step.kind == Kind.GATE_UP:
            return self.normed if step.expert < 0 else self.normed[self._tokens(step)]
        if step.kind == Kind.DOWN:
            if not self.uses(step):
                return torch.empty(0, self.config.intermediate_size)
            return self.inner
        raise ValueError(f"nothing is multiplied in a step of kind {step.kind}")

    def embed(self, start: int, rows: Tensor) -> None:
        """Look up what rows (n, D) of the embedding from row `start` have."""
        inside = (self.ids >= start) & (self.ids < start + len(rows))
        self.hidden[inside] = rows[self.ids[inside] - start]

    def take_norm(self, role: Role, weight: Tensor) -> None:
        """Normalise for the step that the norm (D,) stands before."""
        normed = norm(self.hidden, weight, self.config.rms_norm_eps)
        if role == Role.FINAL_NORM:
            self.hidden = normed
        elif role == Role.ATTN_NORM:
            self.normed = normed
        elif role == Role.FFN_NORM:
            self.normed, self.routing, self.logits = normed, None, None
        else:
            raise ValueError(f"{role} is no norm")

    def head(self, rows: Tensor) -> list[Tensor]:
        """Logits (T, n) of each sequence for rows (n, D) of the head."""
        return [F.linear(self.hidden[span], rows) for span in self.spans]

    def advance(self, step: Step, weights: Weights) -> None:
        """Take a step of a layer, with all of its matrices and biases."""
        if step.kind == Kind.QKV:
            layer, config = step.layer, self.config
            mixed = (
                attention(self.normed[span], weights, config, layer, self.angles, self.cache)
                for span in self.spans
            )
            self.inner = torch.cat(list(mixed))
        elif step.kind == Kind.ATTENTION_OUT:
            self.hidden += F.linear(self.inner, weights[Role.O], weights.get(Role.O_BIAS))
        elif step.kind == Kind.ROUTER:
            self.logits = F.linear(self.normed, weights[Role.ROUTER])
            shape = self.config.layers[step.layer]
            self.routing = route(self.logits, shape, self.config.norm_topk_prob)
        elif step.kind == Kind.GATE_UP:
            self.inner = gated(self.inputs(step), weights)
        elif step.kind == Kind.DOWN and step.expert < 0:
            bias = weights.get(Role.DENSE_DOWN_BIAS)
            self.hidden += F.linear(self.inner, weights[Role.DENSE_DOWN], bias)
        elif step.kind == Kind.DOWN:
            tokens, weight = self._routing().uses(step.expert)
            self.out = F.linear(self.inner, weights[Role.DOWN])
            self.hidden.index_add_(0, tokens, self.out * weight)
        else:
            raise ValueError(f"a layer has no step of kind {step.kind}")

    def _routing(self) -> Routing:
        if self.routing is None:
            raise ValueError("an expert before its router")
        return self.routing

    def _tokens(self, step: Step) -> Tensor:
        return self._routing().uses(step.expert)[0]
