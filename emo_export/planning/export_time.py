"""How long an export takes on this machine: speeds of pieces of it, times how many there are.

The speeds are measured on a matrix of an expert's shape, each for a part of a second. The parts are
added up, as on a machine whose cores are all busy with each: `python -m tests.bench.plan` compares.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from emo_export.base.page_cache import drop
from emo_export.errors import EmoExportError
from emo_export.interfaces import F32, Format
from emo_export.model.config import EmoConfig
from emo_export.model.names import VECTORS, Role, shape_of, slots
from emo_export.model.product import Product
from emo_export.planning.export_need import ExportNeed
from emo_export.planning.outline import Planned
from emo_export.text.sample import CALIBRATION_TOKENS

READ_SECONDS, SECONDS = 1.0, 0.2
CHUNK = 8 << 20
ROWS = 1024


@dataclass(frozen=True)
class Speeds:
    """Of this machine: `read` bytes of the checkpoint a second, `multiply` multiply-adds a second.

    `pack`: weights a second, by the name of a format.
    """

    read: float
    multiply: float
    pack: Mapping[str, float]


@dataclass(frozen=True)
class ExportTime:
    """Seconds of an export to all planned targets of a count of experts, without validation.

    `calibrating`: of text to choose experts by, or for importance, where either is needed.
    """

    reading: float
    packing: float
    calibrating: float
    reference: float

    @property
    def total(self) -> float:
        """All of it."""
        return self.reading + self.packing + self.calibrating + self.reference


def measure(files: Sequence[Path], config: EmoConfig, planned: Sequence[Planned]) -> Speeds:
    """Measure for some seconds. Raises EmoExportError without weights to read."""
    formats = {name: one for each in planned for name, one in each.formats.items()}
    rows = np.random.default_rng(0).standard_normal((ROWS, config.hidden_size), np.float32)
    pack = {name: _packing(one, rows) for name, one in formats.items()}
    return Speeds(read_speed(files), _multiplying(config), pack)


def export_time(
    product: Product, need: ExportNeed, planned: Sequence[Planned], speeds: Speeds
) -> ExportTime:
    """Of one export to all of `planned`. The reference takes each lossy target's weights, too."""
    packing = sum(
        count / speeds.pack[name] for each in planned for name, count in each.weights.items()
    )
    whole, kept = product.source.config, product.config
    chosen = not product.is_whole
    calibrates = chosen or any(each.calibrated for each in planned)
    calibrating = CALIBRATION_TOKENS * _active(kept, head=False) if calibrates else 0.0
    lossy = sum(set(each.weights) != {"f32"} for each in planned)
    reference = need.tokens * ((1 + lossy) * _active(kept) + (_active(whole) if chosen else 0.0))
    return ExportTime(
        (need.read or 0) / speeds.read,
        packing,
        calibrating / speeds.multiply,
        reference / speeds.multiply,
    )


def read_speed(files: Sequence[Path]) -> float:
    """Bytes per second of reading a checkpoint's files from the disk, over a second of it.

    They are dropped from the page cache first. Raises EmoExportError when there is nothing to read.
    """
    drop(files)
    taken, began = 0, time.perf_counter()
    for file in files:
        with file.open("rb", buffering=0) as handle:
            while chunk := handle.read(CHUNK):
                taken += len(chunk)
                if time.perf_counter() - began >= READ_SECONDS:
                    return taken / (time.perf_counter() - began)
    if not taken:
        raise EmoExportError("there are no weights here whose reading could be measured")
    return taken / (time.perf_counter() - began)


def _packing(kind: Format, rows: F32) -> float:
    cols = rows.shape[1] // kind.block * kind.block
    even = np.ones(cols, np.float32)
    kind.quantize(rows[:1, :cols], even)  # some types make tables at first
    fitting = np.ascontiguousarray(rows[:, :cols])
    return _rate(lambda: kind.quantize(fitting, even)) * fitting.size


def _multiplying(config: EmoConfig) -> float:
    """With as many tokens as an expert sees of the calibration text."""
    import torch

    share = config.num_experts_per_tok / max(1, config.num_experts)
    tokens = max(1, round(CALIBRATION_TOKENS * min(1.0, share)))
    inputs = torch.ones(tokens, config.hidden_size)
    weight = torch.ones(config.intermediate_size, config.hidden_size)
    return _rate(lambda: inputs @ weight.T) * inputs.shape[0] * weight.numel()


def _rate(work: Callable[[], object]) -> float:
    """How often a second, in the median of at least three times."""
    taken: list[float] = []
    until = time.perf_counter() + SECONDS
    while len(taken) < 3 or time.perf_counter() < until:
        began = time.perf_counter()
        work()
        taken.append(time.perf_counter() - began)
    return 1 / float(np.median(taken))


def _active(config: EmoConfig, head: bool = True) -> float:
    """Multiply-adds of a token."""
    found = 0.0
    for slot in slots(config):
        if slot.role in VECTORS | {Role.EMBED, Role.HEAD}:
            continue
        layer = config.layers[slot.layer]
        routed = slot.expert >= 0 and slot.expert not in layer.forced
        share = layer.num_routed_per_tok / len(layer.routed) if routed else 1.0
        found += share * math.prod(shape_of(slot, config))
    return found + (config.vocab_size * config.hidden_size if head else 0)
