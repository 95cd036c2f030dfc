"""The one loop that everything goes through: each weight is read once.

It is quantised once for each distinct format, pushed to every writer, and fed, as it is or
dequantised, to the reference runs whose logits become golden.npz.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from emo_export.checkpoint import Checkpoint
from emo_export.errors import EmoExportError
from emo_export.interfaces import F32, Format, Packed, Writer
from emo_export.layers import ReferenceRun
from emo_export.names import Slot, slots
from emo_export.reference import row_spans
from emo_export.scheme import QuantScheme


@dataclass(frozen=True)
class Probe:
    """A reference run and the scheme whose dequantised weights it takes (None: the original's)."""

    run: ReferenceRun
    scheme: QuantScheme | None


def stream(
    checkpoint: Checkpoint,
    writers: Sequence[Writer],
    probes: Sequence[Probe],
    on_bytes: Callable[[int], None],
) -> None:
    """Read every weight in order and push it everywhere; `on_bytes` hears of the bytes read.

    Raises EmoExportError naming file and tensor when a weight is damaged or fits no format.
    """
    config = checkpoint.config
    for slot in slots(config):
        tensor = checkpoint.at(slot)
        for start, stop in row_spans(slot, config):
            _push(slot, start, tensor.rows(start, stop), writers, probes, str(tensor.file))
            on_bytes(tensor.row_bytes * (stop - start))


def _push(
    slot: Slot,
    start: int,
    rows: F32,
    writers: Sequence[Writer],
    probes: Sequence[Probe],
    file: str,
) -> None:
    piece = _Piece(rows)
    for writer in writers:
        try:
            packed = piece.packed(writer.format_of(slot))
        except EmoExportError as error:
            raise EmoExportError(f"{file}: tensor {slot.name}: {error}") from error
        writer.write(slot, start, packed)
    for probe in probes:
        if probe.run.wants(slot):
            scheme = probe.scheme
            weight = rows if scheme is None else piece.dequantised(scheme.format_of(slot))
            probe.run.feed(slot, start, weight)


class _Piece:
    """The rows of one weight, and each packed and dequantised form of them, made once."""

    def __init__(self, rows: F32) -> None:
        self._rows = rows
        self._packed: dict[int, Packed] = {}
        self._dequantised: dict[int, F32] = {}

    def packed(self, kind: Format) -> Packed:
        if id(kind) not in self._packed:
            self._packed[id(kind)] = kind.quantize(self._rows)
        return self._packed[id(kind)]

    def dequantised(self, kind: Format) -> F32:
        if id(kind) not in self._dequantised:
            self._dequantised[id(kind)] = kind.dequantize(self.packed(kind))
        return self._dequantised[id(kind)]
