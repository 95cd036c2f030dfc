"""The one loop that everything goes through: block by block, step by step, each weight read once.

A weight is quantised once for each distinct form, pushed to every writer, and fed to the passes
whose logits become golden.npz and to the calibrations that tell quantisers of their inputs.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Protocol, TypeVar

from emo_export.errors import EmoExportError
from emo_export.interfaces import (
    F32,
    Format,
    InputStatistics,
    Packed,
    Quantiser,
    Statistics,
    Writer,
)
from emo_export.model.names import Role, Slot, Step, blocks, row_spans
from emo_export.model.product import Product
from emo_export.model.quantiser import Weighted

if TYPE_CHECKING:  # a plain conversion has no use for torch, which takes seconds to import
    from emo_export.reference.passes import Pass

T = TypeVar("T")

READ_AHEAD = 2
"""Pieces (an expert's matrix, or PIECE_BYTES of a larger one) that are read before their turn."""


class Measured(Protocol):
    """Where statistics of inputs come from: an importance matrix, or a calibration."""

    def statistics(self, step: Step, slot: Slot, needs: Statistics) -> InputStatistics | None:
        """Of a matrix's inputs, asked before it is fed; None where nothing was measured."""


class Calibrating(Measured, Protocol):
    """A calibration, which goes along over the float weights or (`own`) the quantised ones."""

    own: bool

    def feed(self, step: Step, slot: Slot, start: int, rows: F32) -> None:
        """Let it go on over rows of a weight."""


@dataclass(frozen=True)
class Output:
    """A writer, the quantiser that it wants for a format, and what quantisers are told.

    `calibration` is fed as the weights go by, float ones or, if it is its `own`, what this output
    makes of them; `measured` (default: the calibration) answers for the inputs of a matrix.
    """

    writer: Writer
    measured: Measured | None = None
    calibration: Calibrating | None = None
    quantiser: Callable[[Format], Quantiser] = Weighted


@dataclass(frozen=True)
class Piece:
    """Rows of one weight, from row `start`, and what they took on disk."""

    step: Step
    slot: Slot
    start: int
    rows: F32
    nbytes: int
    again: bool
    """Read a second time for the passes alone: the embedding as a tied head."""


def stream(
    product: Product,
    outputs: Sequence[Output],
    passes: Sequence[Pass],
    on_bytes: Callable[[int], None],
) -> None:
    """Read every weight in order and push it everywhere; `on_bytes` hears of the bytes read.

    While one piece is written and fed to the passes, the next is quantised and those after it are
    read; with a calibration on the quantised model's own states, quantising waits for the steps
    before. Raises EmoExportError naming file and tensor when a weight is damaged or fits no format.
    """
    calibrations = {id(o.calibration): o.calibration for o in outputs if o.calibration}.values()
    floats = [calibration for calibration in calibrations if not calibration.own]
    depth = 1 if len(floats) == len(calibrations) else 0
    pieces = _ahead("read", READ_AHEAD, _reading(product))
    for piece, forms in _ahead("pack", depth, _packing(product, pieces, outputs, floats)):
        for output in outputs:
            if not piece.again:
                output.writer.write(piece.slot, piece.start, forms.packed(output))
            if output.calibration is not None and output.calibration.own:
                rows = piece.rows if piece.again else forms.dequantised(output)
                output.calibration.feed(piece.step, piece.slot, piece.start, rows)
        for each in passes:
            if each.wants(piece.step, piece.slot):
                each.feed(piece.step, piece.slot, piece.start, piece.rows)
        on_bytes(0 if piece.again else piece.nbytes)


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


def _reading(product: Product) -> Iterator[Callable[[], Piece]]:
    tied = product.config.tie_word_embeddings

    def read(step: Step, slot: Slot, start: int, stop: int) -> Piece:
        rows, nbytes = product.rows(slot, start, stop), product.row_bytes(slot) * (stop - start)
        return Piece(step, slot, start, rows, nbytes, tied and slot.role == Role.HEAD)

    for block in blocks(product.config):
        for step in block.steps:
            for slot in step.slots:
                for start, stop in row_spans(slot, product.config):
                    yield partial(read, step, slot, start, stop)


def _packing(
    product: Product,
    pieces: Iterable[Piece],
    outputs: Sequence[Output],
    floats: Sequence[Calibrating],
) -> Iterator[Callable[[], tuple[Piece, _Forms]]]:
    def pack(piece: Piece, forms: _Forms) -> tuple[Piece, _Forms]:
        try:
            for output in () if piece.again else outputs:
                forms.packed(output)
        except EmoExportError as error:
            origin = product.origin(piece.slot)
            file = product.source.at(origin).file
            raise EmoExportError(f"{file}: tensor {origin.name}: {error}") from error
        return piece, forms

    for piece in pieces:
        forms = _Forms(piece)
        if not piece.again:
            for output in outputs:
                forms.ask(output)
        for calibration in floats:
            calibration.feed(piece.step, piece.slot, piece.start, piece.rows)
        yield partial(pack, piece, forms)


class _Forms:
    """The rows of one piece, and each packed and dequantised form of them, made once."""

    def __init__(self, piece: Piece) -> None:
        self._piece = piece
        self._told: dict[tuple[int, Statistics], InputStatistics | None] = {}
        self._packed: dict[tuple[int, int, int], Packed] = {}
        self._dequantised: dict[tuple[int, int, int], F32] = {}

    def ask(self, output: Output) -> None:
        """Ask for the statistics that the output's quantiser wants, while they can be had."""
        measured, needs = output.measured or output.calibration, self._quantiser(output).needs
        if measured is not None and (id(measured), needs) not in self._told:
            piece = self._piece
            told = measured.statistics(piece.step, piece.slot, needs)
            self._told[id(measured), needs] = told

    def packed(self, output: Output) -> Packed:
        key = self._key(output)
        if key not in self._packed:
            quantiser = self._quantiser(output)
            told = self._told.get((key[2], quantiser.needs))
            self._packed[key] = quantiser.quantize(self._piece.rows, told)
        return self._packed[key]

    def dequantised(self, output: Output) -> F32:
        key = self._key(output)
        if key not in self._dequantised:
            form = output.writer.format_of(self._piece.slot)
            self._dequantised[key] = form.dequantize(self.packed(output))
        return self._dequantised[key]

    def _quantiser(self, output: Output) -> Quantiser:
        return output.quantiser(output.writer.format_of(self._piece.slot))

    def _key(self, output: Output) -> tuple[int, int, int]:
        """What makes one form of another: format, quantiser and statistics."""
        form = output.writer.format_of(self._piece.slot)
        return id(form), id(output.quantiser), id(output.measured or output.calibration)
