"""The hidden states of one variant of the model over some token sequences, carried step by step.

A variant is a set of weights: the original, a pruned float model, what a quantiser left. It holds
what the next step needs and no weight. Letters: T tokens of all sequences, D hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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

CHUNK = 4096
"""Tokens that are dealt with at a time, so that what a step makes on its way stays small."""


@dataclass(frozen=True)
class Inputs:
    """What the matrices of a step multiply: rows (n, C) of `values` (T, C).

    They are those of `tokens` (n,) (None: all), and only copied chunk by chunk.
    """

    values: Tensor
    tokens: Tensor | None = None

    def __len__(self) -> int:
        """How many rows."""
        return len(self.values if self.tokens is None else self.tokens)

    @property
    def width(self) -> int:
        """C."""
        return self.values.shape[1]

    def chunks(self) -> Iterator[tuple[slice, Tensor]]:
        """At most CHUNK rows at a time, and which ones of the n they are."""
        for rows in chunks(len(self)):
            at = rows if self.tokens is None else self.tokens[rows]
            yield rows, self.values[at]


def chunks(count: int) -> Iterator[slice]:
    """Slices of at most CHUNK that make up `count`."""
    for start in range(0, count, CHUNK):
        yield slice(start, min(start + CHUNK, count))


@dataclass
class States:
    """What one variant has computed so far, for the T tokens of all sequences.

    `hidden` (T, D); `normed` (T, D), the input of q, k, v, then of router, gate and up; `inner`,
    the input of o, then of down; `logits` (T, E) and `routing` of the router; `norms` (n,) of what
    the last expert gave its n tokens, before the router's weight. What no later step needs is let
    go: two of size (T, D) are there at a time.

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
    norms: Tensor | None = None

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
        nothing = hidden.new_empty(0)
        return cls(config, ids, spans, (cos, sin), cache, hidden, nothing, nothing)

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

    def inputs(self, step: Step) -> Inputs:
        """What the matrices of a step multiply.

        To be asked when every step before it has been taken. For q, k, v, the router and a dense
        MLP, whose norm belongs to the step, the norm must have been taken (`take_norm`).
        """
        if step.kind == Kind.HEAD:
            return Inputs(self.hidden)
        if step.kind in (Kind.QKV, Kind.ROUTER):
            return Inputs(self.normed)
        if step.kind == Kind.ATTENTION_OUT:
            return Inputs(self.inner)
        if step.kind == Kind.GATE_UP:
            return Inputs(self.normed, self.tokens(step))
        if step.kind == Kind.DOWN:
            if not self.uses(step):
                return Inputs(torch.empty(0, self.config.intermediate_size))
            return Inputs(self.inner)
        raise ValueError(f"nothing is multiplied in a step of kind {step.kind}")

    def tokens(self, step: Step) -> Tensor | None:
        """Which tokens (n,) the inputs of a step are of; None: all, in order."""
        return None if step.expert < 0 else self._routing().uses(step.expert)[0]

    def tokens_of(self, sequences: Sequence[int]) -> Tensor:
        """The numbers (T,) of the tokens of some sequences."""
        spans = [self.spans[each] for each in sequences]
        numbers = [torch.arange(span.start, span.stop) for span in spans]
        return torch.cat(numbers).to(self.hidden.device)

    def all_normed(self) -> Inputs:
        """What the experts of a layer multiply, of all tokens."""
        return Inputs(self.normed)

    def embed(self, start: int, rows: Tensor) -> None:
        """Look up what rows (n, D) of the embedding from row `start` have."""
        inside = (self.ids >= start) & (self.ids < start + len(rows))
        self.hidden[inside] = rows[self.ids[inside] - start]

    def take_norm(self, role: Role, weight: Tensor) -> None:
        """Normalise for the step that the norm (D,) stands before."""
        self.normed = self.inner = self.hidden.new_empty(0)  # let go before as much is made anew
        if role == Role.FINAL_NORM:
            normed = self.hidden
        elif role in (Role.ATTN_NORM, Role.FFN_NORM):
            self.normed = normed = torch.empty_like(self.hidden)
        else:
            raise ValueError(f"{role} is no norm")
        if role == Role.FFN_NORM:
            self.routing, self.logits = None, None
        for rows, hidden in Inputs(self.hidden).chunks():
            normed[rows] = norm(hidden, weight, self.config.rms_norm_eps)

    def head(self, rows: Tensor) -> Iterator[Tensor]:
        """Logits (T, n) of each sequence for rows (n, D) of the head."""
        return (F.linear(self.hidden[span], rows) for span in self.spans)

    def advance(self, step: Step, weights: Weights) -> None:
        """Take a step of a layer, with all of its matrices and biases."""
        if step.kind == Kind.QKV:
            self._mix(step.layer, weights)
        elif step.kind == Kind.ATTENTION_OUT:
            self._add(weights[Role.O], weights.get(Role.O_BIAS))
        elif step.kind == Kind.ROUTER:
            self.logits = F.linear(self.normed, weights[Role.ROUTER])
            shape = self.config.layers[step.layer]
            self.routing = route(self.logits, shape, self.config.norm_topk_prob)
        elif step.kind == Kind.GATE_UP:
            inputs = self.inputs(step)
            width = weights[Role.GATE if Role.GATE in weights else Role.DENSE_GATE].shape[0]
            self.inner = self.hidden.new_empty(0)
            inner = self.hidden.new_empty(len(inputs), width)
            for rows, normed in inputs.chunks():
                inner[rows] = gated(normed, weights)
            self.inner = inner
        elif step.kind == Kind.DOWN and step.expert < 0:
            self._add(weights[Role.DENSE_DOWN], weights.get(Role.DENSE_DOWN_BIAS))
        elif step.kind == Kind.DOWN:
            self._add_expert(step, weights[Role.DOWN])
        else:
            raise ValueError(f"a layer has no step of kind {step.kind}")

    def _mix(self, layer: int, weights: Weights) -> None:
        """Attention, whose outcome for a sequence takes the place of its input if as wide."""
        normed, width = self.normed, weights[Role.Q].shape[0]
        fits = width == normed.shape[1]
        self.inner = normed if fits else normed.new_empty(len(normed), width)
        for span in self.spans:
            self.inner[span] = attention(
                normed[span], weights, self.config, layer, self.angles, self.cache
            )
        self.normed = self.hidden.new_empty(0)

    def _add(self, weight: Tensor, bias: Tensor | None) -> None:
        for rows, inner in Inputs(self.inner).chunks():
            self.hidden[rows] += F.linear(inner, weight, bias)
        self.inner = self.hidden.new_empty(0)

    def _add_expert(self, step: Step, down: Tensor) -> None:
        tokens, weight = self._routing().uses(step.expert)
        self.norms = self.hidden.new_empty(len(tokens))
        for rows, inner in Inputs(self.inner).chunks():
            out = F.linear(inner, down)
            self.norms[rows] = out.norm(dim=1)
            self.hidden.index_add_(0, tokens[rows], out.mul_(weight[rows]))

    def _routing(self) -> Routing:
        if self.routing is None:
            raise ValueError("an expert before its router")
        return self.routing
