"""The one loop that everything goes through: block by block, step by step, each weight read once.

A weight is quantised once for each distinct form, pushed to every writer, and fed to the passes
whose logits become golden.npz and to the calibrations that tell quantisers of their inputs. Several
products may be made of one source at a time; which experts they keep may be chosen on the way.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol, TypeVar

from emo_export.errors import BadValueError, EmoExportError
from emo_export.interfaces import (
    F32,
    InputStatistics,
    Packed,
    Statistics,
)
from emo_export.line import Choosing, Line, Output, step_at
from emo_export.model.names import Block, Kind, Role, Slot, Step, blocks, row_spans
from emo_export.model.product import Product
from emo_export.model.source import SourceTensor

T = TypeVar("T")

OnBytes = Callable[[Slot, int], None]
"""Hears of bytes of a weight of the source that were dealt with, read or not."""

READ_AHEAD = 2
"""Pieces (an expert's matrix, or PIECE_BYTES of a larger one) that are read before their turn."""


class Saving(Protocol):
    """Keeps work in progress, so that a later run can go on with it."""

    def restore(self, lines: Sequence[Line]) -> int:
        """Bring lines to where an earlier run was; the number of blocks that it had finished."""

    def save(self, blocks: int, lines: Sequence[Line]) -> None:
        """After so many blocks."""


@dataclass(frozen=True)
class Piece:
    """Rows of one weight, from row `start`, and what they took on disk."""

    step: Step
    slot: Slot
    start: int
    rows: F32
    nbytes: int
    dtype: str
    again: bool
    """Read a second time for the listeners alone: the embedding as a tied head."""

    def of(self, product: Product) -> Piece | None:
        """A piece of the source as a product numbers it; None for what is left out."""
        place = product.place_of(self.slot)
        if place is None:
            return None
        rows = self.rows
        if self.slot.role == Role.ROUTER and len(rows) != len(product.kept[place.layer]):
            rows = rows[list(product.kept[place.layer])]
        rows = product.scaled(place, rows, self.dtype, self.start)
        return replace(self, step=step_at(self.step, place), slot=place, rows=rows)


@dataclass
class Traffic:
    """Bytes of the source that were read, and those that nothing had a use for.

    `experts`: of each expert, (layer, the source's number), those that were read.
    """

    read: int = 0
    skipped: int = 0
    experts: dict[tuple[int, int], int] = field(default_factory=dict)

    def add(self, slot: Slot, nbytes: int) -> None:
        """Bytes of a weight were read."""
        self.read += nbytes
        if slot.expert >= 0:
            place = (slot.layer, slot.expert)
            self.experts[place] = self.experts.get(place, 0) + nbytes


def stream(
    lines: Sequence[Line],
    on_bytes: OnBytes = lambda slot, nbytes: None,
    traffic: Traffic | None = None,
    saving: Saving | None = None,
) -> Traffic:
    """Read the weights of a source in order and push each everywhere.

    With `saving`, work is saved after each layer, and begun where an earlier run left it.

    `traffic` counts on. While one piece is written, the next is quantised and those after it are
    read; with a calibration on the quantised model's own states, quantising waits for the steps
    before. Raises EmoExportError naming file and tensor when a weight is damaged or fits no format.
    """
    traffic, source = traffic or Traffic(), lines[0].product.source
    finished = 0 if saving is None else saving.restore(lines)
    for number, block in enumerate(blocks(source.config)):
        if number < finished:
            for slot in (slot for step in block.steps for slot in step.slots):
                rows = sum(end - at for at, end in row_spans(slot, source.config))
                on_bytes(slot, source.at(slot).row_bytes * rows)
            continue
        stream_block(block, lines, on_bytes, traffic)
        if saving is not None and 0 <= block.layer < source.config.num_hidden_layers:
            saving.save(number + 1, lines)
    return traffic


def stream_block(block: Block, lines: Sequence[Line], on_bytes: OnBytes, traffic: Traffic) -> None:
    """Go through one block; where lines choose experts, first with those that need not."""
    flow = _Flow(Product.whole(lines[0].product.source), on_bytes, traffic)
    at = next((i for i, step in enumerate(block.steps) if step.kind == Kind.ROUTER), None)
    if at is None:
        flow.push(block.steps, lines)
        return
    # Whether an expert is needed can be told when the router has been fed.
    before, router, experts = block.steps[:at], block.steps[at : at + 1], block.steps[at + 1 :]
    flow.push(before, lines)
    choices = [(line.product, line.choice) for line in lines if line.choice is not None]
    for piece in flow.read(router) if choices else ():
        for _, choice in choices:
            choice.feed(piece.step, piece.slot, piece.start, piece.rows)
    trying = [choice for _, choice in choices if choice.tries_experts]
    now = [line for line in lines if line.choice is None or not trying]
    if trying:
        flow.push(router, now)
        flow.push(experts, now, trying)
    for product, choice in choices:
        count = product.config.layers[block.layer].num_experts
        product.keep(block.layer, choice.choose(block.layer, count), choice.scale(block.layer))
    rest = [line for line in lines if line.choice is not None] if trying else now
    flow.push(router, rest)
    flow.push(experts, rest)


@dataclass(frozen=True)
class _Flow:
    """Pushes steps of a source through reading, quantising and writing."""

    source: Product
    on_bytes: OnBytes
    traffic: Traffic

    def read(self, steps: Sequence[Step]) -> Iterator[Piece]:
        """Every piece of steps."""
        for step in steps:
            for slot in step.slots:
                for start, stop in row_spans(slot, self.source.config):
                    yield self._piece(step, slot, start, stop)

    def push(
        self, steps: Sequence[Step], lines: Sequence[Line], tried: Sequence[Choosing] = ()
    ) -> None:
        """Feed and write what lines want of steps; `tried` are choices that try them."""
        waits = any(output.own is not None for line in lines for output in line.outputs)
        pieces = _ahead("read", READ_AHEAD, self._reading(steps, lines, tried))
        for piece, forms in _ahead("pack", 0 if waits else 1, self._packing(pieces, lines, tried)):
            for form in forms:
                form.deliver()
            self.on_bytes(piece.slot, 0 if piece.again or tried else piece.nbytes)

    def _piece(self, step: Step, slot: Slot, start: int, stop: int) -> Piece:
        tied = self.source.config.tie_word_embeddings and slot.role == Role.HEAD
        rows = self.source.rows(slot, start, stop)
        nbytes = self._row_bytes(slot) * (stop - start)
        self.traffic.add(slot, nbytes)
        return Piece(step, slot, start, rows, nbytes, self._tensor(slot).dtype, tied)

    def _row_bytes(self, slot: Slot) -> int:
        return self._tensor(slot).row_bytes

    def _tensor(self, slot: Slot) -> SourceTensor:
        return self.source.source.at(self.source.origin(slot))

    def _reading(
        self, steps: Sequence[Step], lines: Sequence[Line], tried: Sequence[Choosing]
    ) -> Iterator[Callable[[], Piece]]:
        for step in steps:
            for slot in step.slots:
                wanted = any(line.wants(step, slot) for line in lines)
                wanted = wanted or any(choice.wants(step) for choice in tried)
                for start, stop in row_spans(slot, self.source.config):
                    if wanted:
                        yield partial(self._piece, step, slot, start, stop)
                    elif not tried:
                        skipped = self._row_bytes(slot) * (stop - start)
                        self.traffic.skipped += skipped
                        self.on_bytes(slot, skipped)

    def _packing(
        self, pieces: Iterable[Piece], lines: Sequence[Line], tried: Sequence[Choosing]
    ) -> Iterator[Callable[[], tuple[Piece, list[_Form]]]]:
        def pack(piece: Piece, forms: list[_Form]) -> tuple[Piece, list[_Form]]:
            made: dict[tuple[int, ...], Packed] = {}
            try:
                for form in forms:
                    form.pack(made)
            except EmoExportError as error:
                tensor = self.source.source.at(self.source.origin(piece.slot))
                place = error.below(piece.start) if isinstance(error, BadValueError) else error
                raise EmoExportError(f"{tensor.file}: tensor {tensor.name}: {place}") from error
            return piece, forms

        for piece in pieces:
            forms = []
            for line in lines:
                part = piece.of(line.product)
                if part is None:
                    continue
                forms += [_Form(part, output) for output in line.outputs]
                for listener in line.listeners:
                    if listener.wants(part.step, part.slot):
                        listener.feed(part.step, part.slot, part.start, part.rows)
            for choice in tried:
                if choice.wants(piece.step):
                    choice.feed(piece.step, piece.slot, piece.start, piece.rows)
            yield partial(pack, piece, forms)


class _Form:
    """What one output makes of a piece; what others made of it alike is used again."""

    def __init__(self, piece: Piece, output: Output) -> None:
        self._piece, self._output = piece, output
        self._told: InputStatistics | None = None
        self._told_by = output.told_by(piece.slot)
        self._packed: Packed = {}
        if piece.again:
            return
        self._format = output.writer.format_of(piece.slot)
        self._quantiser = output.quantiser(self._format)
        # Asked now, while it can be had: before the weight itself is fed.
        if self._told_by is not None:
            needs = self._quantiser.needs
            self._told = self._told_by.statistics(piece.step, piece.slot, needs)
        if output.measured is not None and output.measured is not self._told_by:
            # An importance matrix has what was asked for.
            output.measured.statistics(piece.step, piece.slot, Statistics.DIAGONAL)

    def pack(self, made: dict[tuple[int, ...], Packed]) -> None:
        """Pack the rows, or take what an output of the same format and statistics has packed."""
        if self._piece.again:
            return
        output = self._output
        told = 0 if self._told is None else id(self._told_by)
        key = (id(self._piece.rows), id(self._format), id(output.quantiser), told)
        if key not in made:
            made[key] = self._quantiser.quantize(self._piece.rows, self._told)
            self._format.check(made[key])
        self._packed = made[key]

    def deliver(self) -> None:
        """Write what was packed, and feed it to the output's own calibration."""
        piece, own = self._piece, self._output.own
        if not piece.again:
            self._output.writer.write(piece.slot, piece.start, self._packed)
        if own is not None and own.wants(piece.step, piece.slot):
            rows = piece.rows if piece.again else self._format.dequantize(self._packed)
            own.feed(piece.step, piece.slot, piece.start, rows)


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
