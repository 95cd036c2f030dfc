"""The one loop that everything goes through: each weight is read once.

It is quantised once for each distinct format, pushed to every writer, and fed, as it is or
dequantised, to the reference runs whose logits become golden.npz.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

from emo_export.checkpoint import Checkpoint
from emo_export.errors import EmoExportError
from emo_export.interfaces import F32, Format, Packed, Writer
from emo_export.layers import ReferenceRun
from emo_export.names import Slot, slots
from emo_export.reference import row_spans
from emo_export.scheme import QuantScheme

READ_AHEAD = 2
"""Pieces (an expert's matrix, or PIECE_BYTES of a larger one) that are read before their turn."""


@dataclass(frozen=True)
class Probe:
    """A reference run and the scheme whose dequantised weights it takes (None: the original's)."""

    run: ReferenceRun
    scheme: QuantScheme | None


class Importance(Protocol):
    """Where the importance of columns comes from: a file, or a calibration that goes along."""

    def row(self, slot: Slot) -> F32 | None:
        """Importance (C,) of a matrix, asked before it is fed; None where nothing was measured."""

    def feed(self, slot: Slot, start: int, rows: F32) -> None:
        """Let a calibration go on over a weight."""


@dataclass(frozen=True)
class Piece:
    """Rows of one weight, from row `start`, and what they took on disk."""

    slot: Slot
    start: int
    rows: F32
    nbytes: int
    file: str


def stream(
    checkpoint: Checkpoint,
    writers: Sequence[Writer],
    probes: Sequence[Probe],
    on_bytes: Callable[[int], None],
    importance: Importance | None = None,
) -> None:
    """Read every weight in order and push it everywhere; `on_bytes` hears of the bytes read.

    Raises EmoExportError naming file and tensor when a weight is damaged or fits no format.
    """
    for piece in _read_ahead(checkpoint):
        _push(piece, writers, probes, importance)
        on_bytes(piece.nbytes)


def _read_ahead(checkpoint: Checkpoint) -> Iterator[Piece]:
    """Every piece in order; while one is being worked on, a thread reads the next."""
    spans = (
        (slot, start, stop)
        for slot in slots(checkpoint.config)
        for start, stop in row_spans(slot, checkpoint.config)
    )

    def read(slot: Slot, start: int, stop: int) -> Piece:
        tensor = checkpoint.at(slot)
        nbytes = tensor.row_bytes * (stop - start)
        return Piece(slot, start, tensor.rows(start, stop), nbytes, str(tensor.file))

    waiting: deque[Future[Piece]] = deque()
    with ThreadPoolExecutor(1, thread_name_prefix="read") as reader:
        try:
            for span in spans:
                waiting.append(reader.submit(read, *span))
                if len(waiting) > READ_AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _push(
    piece: Piece,
    writers: Sequence[Writer],
    probes: Sequence[Probe],
    importance: Importance | None,
) -> None:
    slot, start, rows = piece.slot, piece.start, piece.rows
    forms = _Forms(rows, None if importance is None else importance.row(slot))
    if importance is not None:
        importance.feed(slot, start, rows)
    for writer in writers:
        try:
            packed = forms.packed(writer.format_of(slot))
        except EmoExportError as error:
            raise EmoExportError(f"{piece.file}: tensor {slot.name}: {error}") from error
        writer.write(slot, start, packed)
    for probe in probes:
        if probe.run.wants(slot):
            scheme = probe.scheme
            weight = rows if scheme is None else forms.dequantised(scheme.format_of(slot))
            probe.run.feed(slot, start, weight)


class _Forms:
    """The rows of one piece, and each packed and dequantised form of them, made once."""

    def __init__(self, rows: F32, importance: F32 | None) -> None:
        self._rows, self._importance = rows, importance
        self._packed: dict[int, Packed] = {}
        self._dequantised: dict[int, F32] = {}

    def packed(self, kind: Format) -> Packed:
        if id(kind) not in self._packed:
            self._packed[id(kind)] = kind.quantize(self._rows, self._importance)
        return self._packed[id(kind)]

    def dequantised(self, kind: Format) -> F32:
        if id(kind) not in self._dequantised:
            self._dequantised[id(kind)] = kind.dequantize(self.packed(kind))
        return self._dequantised[id(kind)]
