"""Calibration: an importance matrix from text, collected while the weights stream by.

A reference run on the float weights goes along; just before a matrix is quantised, what it will
multiply is already known, so that one pass over the checkpoint both measures and quantises.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from emo_export.errors import EmoExportError
from emo_export.interfaces import F32, Ids
from emo_export.model.config import EmoConfig
from emo_export.model.importance import LARGEST, ImportanceMatrix
from emo_export.model.names import Role, Slot
from emo_export.reference.layers import ReferenceRun

CHUNK = 4096
"""Tokens whose squares are summed at a time."""


class Calibration:
    """A reference run over calibration sequences, token ids (T,) each, that fills `matrix`."""

    def __init__(
        self, config: EmoConfig, sequences: Sequence[Ids], source: str, device: str = "cpu"
    ) -> None:
        tokens = sum(len(ids) for ids in sequences)
        self.matrix = ImportanceMatrix(source, tokens)
        self._run = ReferenceRun(config, sequences, _forget, device=device)

    @torch.no_grad()
    def row(self, slot: Slot) -> F32 | None:
        """Importance (C,) of a matrix; to be asked before the matrix is fed."""
        if slot not in self.matrix.sums:
            inputs = self._run.input_of(slot)
            if inputs is None:
                return None
            total = torch.zeros(inputs.shape[1], dtype=torch.float64)
            for start in range(0, len(inputs), CHUNK):
                total += inputs[start : start + CHUNK].double().square().sum(0).cpu()
            if not (total <= LARGEST).all():  # a NaN fails too
                raise EmoExportError(
                    f"calibration: the inputs of {slot.name} are not finite or absurdly large; "
                    "is the checkpoint damaged?"
                )
            self.matrix.sums[slot] = total.float().numpy()
            self.matrix.counts[slot] = len(inputs)
        return self.matrix.row(slot)

    def feed(self, slot: Slot, start: int, rows: F32) -> None:
        """Let the run go on over a weight."""
        tied = self._run.config.tie_word_embeddings
        last = Role.FINAL_NORM if tied else Role.HEAD  # a tied head is the embedding
        if slot.role != last and self._run.wants(slot):
            self._run.feed(slot, start, rows)


def _forget(sequence: int, start: int, logits: F32) -> None:
    """Not called: the head is measured, not applied."""
