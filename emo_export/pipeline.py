"""The one loop that everything goes through: each weight is read once.

It is quantised once for each distinct format, pushed to every writer, and fed, as it is or
dequantised, to the reference runs whose logits become golden.npz.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Protocol, TypeVar

from emo_export.errors import EmoExportError
from emo_export.interfaces import F32, Format, Packed, Writer
from emo_export.model.checkpoint import Checkpoint
from emo_export.model.names import Slot, row_spans, slots
from emo_export.model.scheme import QuantScheme

if TYPE_CHECKING:  # a plain conversion has no use for torch, which takes seconds to import
    from emo_export.reference.layers import ReferenceRun

T = TypeVar("T")

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

    While one piece is written and fed to the probes, the next is quantised and those after it are
    read. Raises EmoExportError naming file and tensor when a weight is damaged or fits no format.
    """
    pieces = _ahead("read", READ_AHEAD, _reading(checkpoint))
    for piece, forms in _ahead("pack", 1, _packing(pieces, writers, importance)):
        for writer in writers:
            writer.write(piece.slot, piece.start, forms.packed(writer.format_of(piece.slot)))
        _feed(piece, forms, probes)
        on_bytes(piece.nbytes)


def _ahead(name: str, depth: int, jobs: Iterable[Callable[[], T]]) -> Iterator[T]:
    """What the jobs return, in order; a thread works up to `depth` of them ahead."""
    waiting: deque[Future[T]] = deque()
    with ThreadPoolExecutor(1, thread_name_prefix=name) as worker:
        try:
            for job in jobs:
                waiting.append(worker.submit(job))
                if len(waiting) > depth:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _reading(checkpoint: Checkpoint) -> Iterator[Callable[[], Piece]]:
    def read(slot: Slot, start: int, stop: int) -> Piece:
        tensor = checkpoint.at(slot)
        nbytes = tensor.row_bytes * (stop - start)
        return Piece(slot, start, tensor.rows(start, stop), nbytes, str(tensor.file))

    for slot in slots(checkpoint.config):
        for start, stop in row_spans(slot, checkpoint.config):
            yield partial(read, slot, start, stop)


def _packing(
    pieces: Iterable[Piece], writers: Sequence[Writer], importance: Importance | None
) -> Iterator[Callable[[], tuple[Piece, _Forms]]]:
    def pack(piece: Piece, weights: F32 | None) -> tuple[Piece, _Forms]:
        forms = _Forms(piece.rows, weights)
        try:
            for writer in writers:
                forms.packed(writer.format_of(piece.slot))
        except EmoExportError as error:
            raise EmoExportError(f"{piece.file}: tensor {piece.slot.name}: {error}") from error
        return piece, forms

    for piece in pieces:
        weights = None
        if importance is not None:
            weights = importance.row(piece.slot)
            importance.feed(piece.slot, piece.start, piece.rows)
        yield partial(pack, piece, weights)


def _feed(piece: Piece, forms: _Forms, probes: Sequence[Probe]) -> None:
    for probe in probes:
        if probe.run.wants(piece.slot):
            weight = piece.rows
            if probe.scheme is not None:
                weight = forms.dequantised(probe.scheme.format_of(piece.slot))
            probe.run.feed(piece.slot, piece.start, weight)


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
