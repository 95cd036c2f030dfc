"""How much each expert of a layer matters to a text: four scores, summed sequence by sequence.

Letters: T tokens, D hidden, E experts, K experts per token, n sequences.

- `router`: the mean router probability over all tokens. Source: the pruning of arXiv 2605.06663.
- `easy-ep`: router weight x norm of the expert's output x how much the block turns the token (one
  less the cosine between the hidden state before and after), summed. Source: arXiv 2504.06792.
- `reap`: the mean of router weight x norm of the expert's output over the tokens that chose it.
  Source: arXiv 2510.13999.
- `random`: a yardstick.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from emo_export.model.config import LayerShape
from emo_export.model.names import Role, Step
from emo_export.reference.forward import Tensor
from emo_export.reference.states import States, chunks
from emo_export.selection.method import Method

F64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Scores:
    """Sums over the tokens of each sequence, (n, E).

    A score is a sum of `sums` over one of `weights`.
    """

    sums: F64
    weights: F64

    def of(self, sequences: Any = slice(None)) -> F64:
        """The scores (E,) from some sequences; 0 for an expert without weight."""
        sums, weights = self.sums[sequences].sum(0), self.weights[sequences].sum(0)
        score: F64 = np.divide(sums, weights, out=np.zeros_like(sums), where=weights > 0)
        return score


def router_scores(states: States, shape: LayerShape, logits: Tensor) -> Scores:
    """From router logits (T, E): the probabilities that routing itself uses."""
    routed = list(shape.routed)
    if shape.always_active_experts:
        probabilities = F.softmax(logits, dim=1)
    else:
        probabilities = torch.zeros_like(logits)
        probabilities[:, routed] = F.softmax(logits[:, routed], dim=1)
    return Scores(_by_sequence(states, probabilities), _tokens(states, shape.num_experts))


def random_scores(states: States, shape: LayerShape, seed: int, layer: int) -> Scores:
    """The same for every sequence, another for each layer and seed."""
    drawn = np.random.default_rng([seed, layer]).random(shape.num_experts)
    count = len(states.spans)
    return Scores(np.tile(drawn, (count, 1)), np.ones((count, shape.num_experts)))


class Trial:
    """A layer with all of its experts on states kept aside: what each gives, and to whom."""

    def __init__(self, states: States, shape: LayerShape) -> None:
        """`states` have routed with all experts of the layer."""
        self._before = states.hidden
        self._states = states.copy()
        self._shape = shape
        assert states.routing is not None
        self._norms = torch.zeros_like(states.routing.weights)

    def uses(self, step: Step) -> bool:
        """Whether any token chose the expert."""
        return self._states.uses(step)

    def advance(self, step: Step, weights: dict[Role, Tensor]) -> None:
        """Take a step of an expert."""
        self._states.advance(step, weights)
        norms, routing = self._states.norms, self._states.routing
        if Role.DOWN in weights and norms is not None and routing is not None:
            chosen = routing.experts == step.expert
            self._norms[chosen] = norms * routing.weights[chosen]

    def scores(self, method: Method) -> Scores:
        """Once every expert has been tried."""
        states, routing = self._states, self._states.routing
        assert routing is not None
        values = self._norms
        if method == Method.EASY_EP:
            turned = torch.empty(len(values), device=values.device)
            for rows in chunks(len(values)):
                before, after = self._before[rows], states.hidden[rows]
                turned[rows] = 1 - F.cosine_similarity(before, after, dim=1)
            values = values * turned.clamp(min=0)[:, None]
        experts = self._shape.num_experts
        spread = torch.zeros(len(values), experts, dtype=torch.float64, device=values.device)
        sums = _by_sequence(states, spread.scatter_add(1, routing.experts, values.double()))
        if method == Method.EASY_EP:
            return Scores(sums, _tokens(states, experts))
        uses = spread.scatter_add(1, routing.experts, torch.ones_like(values.double()))
        return Scores(sums, _by_sequence(states, uses))


def _by_sequence(states: States, values: Tensor) -> F64:
    sums: F64 = np.stack([values[span].double().sum(0).cpu().numpy() for span in states.spans])
    return sums


def _tokens(states: States, experts: int) -> F64:
    lengths = [[span.stop - span.start] for span in states.spans]
    return np.tile(np.array(lengths, np.float64), (1, experts))
