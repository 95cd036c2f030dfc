"""Calibration: statistics of every matrix's inputs from text, collected while weights stream by.

A pass over the calibration text goes along with an export. Just before a matrix is quantised, what
it will multiply is known, so that one pass over the checkpoint both measures and quantises.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from emo_export.errors import EmoExportError
from emo_export.interfaces import F32, Ids, InputStatistics, Statistics
from emo_export.model.config import EmoConfig
from emo_export.model.finite import first
from emo_export.model.importance import LARGEST, ImportanceMatrix
from emo_export.model.names import VECTORS, Kind, Role, Slot, Step, slots
from emo_export.reference.drift import Original
from emo_export.reference.passes import Pass
from emo_export.reference.states import Inputs, States

UNMEASURED = VECTORS | {Role.EMBED, Role.ROUTER}
"""Roles that are looked up, or that keep float32 in every format."""

BORROWED = 1
"""Tokens for each column that second moments take from elsewhere (docs/rounding.md)."""


class Calibration:
    """A pass over calibration sequences, token ids (T,) each, that fills `matrix`.

    Fed float weights, it carries the hidden states of the float model; fed what the earlier
    matrices became, those of the quantised model, so that a later one is calibrated on what it will
    meet. With an `original`, the states of the float model, it also tells how far it has drifted
    from these.
    """

    def __init__(
        self,
        config: EmoConfig,
        sequences: Sequence[Ids],
        source: str,
        device: str = "cpu",
        original: Original | None = None,
    ) -> None:
        self._original = original
        self.matrix = ImportanceMatrix(source, sum(len(ids) for ids in sequences))
        self._pass = Pass(States.of(config, sequences, device=device))
        self._moments: tuple[Step, F32, F32 | None] | None = None
        self._layer: tuple[int, F32] | None = None

    @property
    def states(self) -> States:
        """What the text gives the model so far."""
        return self._pass.states

    @torch.no_grad()
    def statistics(self, step: Step, slot: Slot, needs: Statistics) -> InputStatistics | None:
        """Of a matrix's inputs (n, C), to be asked before any of it is fed.

        None for what is looked up or not quantised. `matrix` gets the diagonal of each. Raises
        EmoExportError for inputs that are not finite or too large for a quantiser.
        """
        if slot.role in UNMEASURED:
            return None
        inputs = self._pass.states.inputs(step)
        if slot not in self.matrix.sums:
            self.matrix.sums[slot] = _squares(inputs, slot)
            self.matrix.counts[slot] = len(inputs)
        both = self._of_step(step, inputs) if needs == Statistics.SECOND_MOMENTS else ()
        return InputStatistics(len(inputs), self.matrix.row(slot), *both)

    def _of_step(self, step: Step, inputs: Inputs) -> tuple[F32, F32 | None]:
        """Second moments and drift, the same arrays for all matrices of a step."""
        if self._moments is None or self._moments[0] != step:
            self._moments = None  # let go before as much is made anew
            self._moments = step, self._steadied(step, inputs), self._drift(step, inputs)
        return self._moments[1:]

    def _drift(self, step: Step, inputs: Inputs) -> F32 | None:
        """Borrowed tokens have not drifted."""
        if self._original is None:
            return None
        total = self._original.drift(self.states, step)
        drift: F32 = (total / (len(inputs) + _lent(inputs))).cpu().numpy()
        return drift

    def _steadied(self, step: Step, inputs: Inputs) -> F32:
        """Second moments of a step; of few tokens they lean on others.

        The inputs of an expert's gate and up on those of the layer, which have the same columns;
        all others on none: they count as less correlated.
        """
        found = _moments(inputs)
        lent = _lent(inputs)
        other = np.diag(np.diag(found))
        if step.kind == Kind.GATE_UP and step.expert >= 0:
            if self._layer is None or self._layer[0] != step.layer:
                self._layer = step.layer, _moments(self._pass.states.all_normed())
            other = self._layer[1]
        share = np.float32(lent / (lent + len(inputs)))
        found *= 1 - share
        found += share * other
        return found

    def feed(self, step: Step, slot: Slot, start: int, rows: F32) -> None:
        """Let the pass go on over rows of a weight."""
        self._pass.feed(step, slot, start, rows)

    def wants(self, step: Step, slot: Slot) -> bool:
        """Whether the pass needs a weight: the head and an expert that no token chose are not."""
        return self._pass.wants(step, slot)

    def save(self) -> Mapping[str, npt.NDArray[Any]]:
        """The pass between two layers, and the sums so far."""
        sums = {f"sums/{slot.name}": values for slot, values in self.matrix.sums.items()}
        counts = {f"counts/{slot.name}": np.array(n) for slot, n in self.matrix.counts.items()}
        return {**self._pass.save(), **sums, **counts}

    def load(self, saved: Mapping[str, npt.NDArray[Any]]) -> None:
        """Go on from what was saved."""
        self._pass.load(saved)
        for slot in slots(self._pass.states.config):
            if f"sums/{slot.name}" in saved:
                self.matrix.sums[slot] = saved[f"sums/{slot.name}"]
                self.matrix.counts[slot] = int(saved[f"counts/{slot.name}"])


def _lent(inputs: Inputs) -> int:
    return BORROWED * inputs.width


def _squares(inputs: Inputs, slot: Slot) -> F32:
    """Sum of x squared over inputs (n, C): (C,)."""
    total = torch.zeros(inputs.width, dtype=torch.float64)
    for _, chunk in inputs.chunks():
        total += chunk.double().square_().sum(0).cpu()
    fits = (total <= LARGEST).numpy()  # a NaN fails too
    if not fits.all():
        (column,) = first(~fits)
        raise EmoExportError(
            f"calibration: the inputs of {slot.name} are not finite or absurdly large: column "
            f"{column}, whose squares sum to {total[column]:.6g}; is the checkpoint damaged?"
        )
    sums: F32 = total.float().numpy()
    return sums


def _moments(inputs: Inputs) -> F32:
    """Mean of x xT over inputs (n, C): (C, C), zeros for no input."""
    total = torch.zeros(inputs.width, inputs.width, device=inputs.values.device)
    for _, chunk in inputs.chunks():
        total += chunk.T @ chunk
    moments: F32 = (total / max(len(inputs), 1)).cpu().numpy()
    return moments
