"""Whole passes of the torch reference over a checkpoint: logits of sequences, and greedy text.

The weights come through a `Source`, so that the same pass runs on the checkpoint as it is or on
what a quantiser leaves of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from emo_export.interfaces import F32, Ids
from emo_export.model.checkpoint import Checkpoint
from emo_export.model.config import EmoConfig
from emo_export.model.importance import ImportanceMatrix
from emo_export.model.names import Slot, row_spans, slots
from emo_export.model.scheme import QuantScheme
from emo_export.reference.layers import KeyValues, ReferenceRun

Source = Callable[[Slot, int, int], F32]
"""(slot, first row, end row) -> rows (end - first, C) float32."""


def float_source(checkpoint: Checkpoint) -> Source:
    """The checkpoint's own weights."""

    def read(slot: Slot, start: int, stop: int) -> F32:
        return checkpoint.at(slot).rows(start, stop)

    return read


def dequantised_source(
    checkpoint: Checkpoint, scheme: QuantScheme, importance: ImportanceMatrix | None = None
) -> Source:
    """The weights as a scheme stores them, read back: what the exported model computes with."""

    def read(slot: Slot, start: int, stop: int) -> F32:
        chosen = scheme.format_of(slot)
        weights = importance.row(slot) if importance is not None else None
        return chosen.dequantize(chosen.quantize(checkpoint.at(slot).rows(start, stop), weights))

    return read


def forward(config: EmoConfig, source: Source, run: ReferenceRun) -> None:
    """Feed a run with every weight that it wants."""
    for slot in slots(config):
        if run.wants(slot):
            for start, stop in run.rows_needed(slot) or row_spans(slot, config):
                run.feed(slot, start, source(slot, start, stop))


def logits(
    config: EmoConfig,
    source: Source,
    sequences: Sequence[Ids],
    *,
    cache: KeyValues | None = None,
    device: str = "cpu",
) -> list[F32]:
    """Token ids (T,) each -> logits (T, V) each."""
    out = [np.empty((len(ids), config.vocab_size), np.float32) for ids in sequences]

    def keep(sequence: int, start: int, piece: F32) -> None:
        out[sequence][:, start : start + piece.shape[1]] = piece

    forward(config, source, ReferenceRun(config, sequences, keep, cache=cache, device=device))
    return out


def greedy(config: EmoConfig, source: Source, prompt: Ids, steps: int, device: str = "cpu") -> Ids:
    """The `steps` most likely tokens after a prompt (T,), one pass with a KV cache for each.

    Stops early at the end of the context. A pass reads only the experts that its token uses.
    """
    cache = KeyValues()
    tokens: list[int] = []
    ids = prompt
    steps = min(steps, config.context_length() - len(prompt))
    for _ in range(steps):
        last = logits(config, source, [ids], cache=cache, device=device)[0][-1]
        tokens.append(int(last.argmax()))
        ids = np.array(tokens[-1:], dtype=np.int64)
    return np.array(tokens, dtype=np.int64)
