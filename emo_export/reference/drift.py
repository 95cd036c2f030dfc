"""How far the inputs of a quantised model's matrices are from those of the float model.

Letters: T tokens of the quantised model's text, n of them in a step, C columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from emo_export.model.names import Kind, Step
from emo_export.reference.forward import Tensor
from emo_export.reference.states import States


@dataclass(frozen=True)
class Original:
    """What the float model computes for the same tokens, and more.

    `tokens` (T,): where in its `states` each of them is.
    """

    states: States
    tokens: Tensor

    def drift(self, own: States, step: Step) -> Tensor:
        """Sum of (x - y) yT over the inputs y of a step of `own`, x being those of the float model.

        (C, C). To be asked when both have taken every step before it. An expert that the float
        model does not give a token has no x for its down projection: there x counts as y.
        """
        inputs, tokens = own.inputs(step), own.tokens(step)
        total = inputs.values.new_zeros(inputs.width, inputs.width)
        if not len(inputs):
            return total
        there = self.tokens if tokens is None else self.tokens[tokens]
        if step.kind == Kind.DOWN and step.expert >= 0:
            values, there = self._of_expert(step, there)
        else:
            values = self.states.normed if step.expert >= 0 else self.states.inputs(step).values
        for rows, chunk in inputs.chunks():
            at = there[rows]
            known = at >= 0
            total += (values[at[known]] - chunk[known]).T @ chunk[known]
        return total

    def _of_expert(self, step: Step, there: Tensor) -> tuple[Tensor, Tensor]:
        """What the float model's expert multiplies, and where in it each token is; -1: nowhere."""
        place = torch.full((len(self.states.hidden),), -1, device=there.device)
        if self.states.uses(step):
            chose = self.states.tokens(step)
            place[chose] = torch.arange(len(self.states.inner), device=there.device)
        return self.states.inner, place[there]
