"""Calibrations that are asked and tell what they said, and checkpoints of what matrices became."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from emo_export.interfaces import F32, Format, Ids, InputStatistics, Packed, Statistics
from emo_export.model.config import EmoConfig
from emo_export.model.names import VECTORS, Slot, Step, row_spans, slots
from emo_export.model.product import Product
from emo_export.model.scheme import QuantScheme
from emo_export.reference.calibrate import Calibration
from emo_export.reference.drift import Original
from emo_export.reference.passes import Rows
from tests.kit.exporting import Idle


class Packing(Idle):
    """Packs as a scheme says and writes nothing."""

    def __init__(self, scheme: QuantScheme) -> None:
        self._scheme = scheme

    def format_of(self, slot: Slot) -> Format:
        return self._scheme.format_of(slot)


@dataclass
class Asking:
    """A quantiser that asks for second moments."""

    format: Format
    needs: Statistics = Statistics.SECOND_MOMENTS

    def quantize(self, rows: F32, inputs: InputStatistics | None) -> Packed:
        return self.format.quantize(rows, None)


class Told(Calibration):
    """A calibration that keeps what it says of each matrix."""

    def __init__(
        self,
        config: EmoConfig,
        sequences: Sequence[Ids],
        original: Original | None = None,
    ) -> None:
        super().__init__(config, sequences, "a text", original=original)
        self.of: dict[str, InputStatistics] = {}

    def statistics(self, step: Step, slot: Slot, needs: Statistics) -> InputStatistics | None:
        found = super().statistics(step, slot, needs)
        if found is not None:
            self.of[slot.name] = found
        return found


def stored(folder: Path, product: Product, rows: Rows) -> Path:
    """A checkpoint of a product with these weights, for the oracle to read."""
    folder.mkdir()
    tensors = {
        slot.name: np.concatenate([rows(slot, *span) for span in row_spans(slot, product.config)])
        for slot in slots(product.config)
    }
    tensors |= {s.name: tensors[s.name][0] for s in slots(product.config) if s.role in VECTORS}
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(product.raw), "utf-8")
    return folder
