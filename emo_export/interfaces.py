"""The few protocols at which the core, the converters and the runtimes meet.

Shapes: T tokens, V vocabulary, N rows and C columns of a matrix (a Hugging Face linear weight is
(out features, in features) = (N, C)).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from emo_export.model.names import Slot

F32 = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]
# The arrays that one format makes of rows (N, C); each has N as its first dimension.
Packed = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class TensorDecl:
    """One tensor of an output file, known before any data is read.

    `dtype` is the format's or the file's name of the element type, `nbytes` its size on disk.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    nbytes: int


class Format(Protocol):
    """A way to store the rows of a matrix."""

    name: str
    block: int  # columns that share a scale; C must be a multiple of it

    def nbytes(self, rows: int, cols: int) -> int:
        """Bytes that (rows, cols) take, scales included."""

    def quantize(self, rows: F32, importance: F32 | None = None) -> Packed:
        """Rows (N, C) float32 -> packed arrays, each (N, ...).

        `importance` (C,) weighs the columns' errors; a format that rounds to the nearest value
        has no use for it.
        """

    def dequantize(self, packed: Packed) -> F32:
        """Packed arrays -> rows (N, C) float32: exactly what an engine reads from the file."""

    def check(self, packed: Packed) -> None:
        """Raises BadValueError with the first place that is read as other than a finite number."""


class Statistics(StrEnum):
    """What a quantiser wants to know of the inputs x (C,) of a matrix."""

    NONE = "none"
    DIAGONAL = "diagonal"  # the mean of x squared, (C,)
    SECOND_MOMENTS = "second_moments"  # the mean of x xT, (C, C)


@dataclass(frozen=True)
class InputStatistics:
    """What was measured of a matrix's inputs over `tokens` tokens, with what was asked for.

    `diagonal` (C,): the mean of each squared; `second_moments` (C, C): of x xT. `drift` (C, C),
    where inputs x are those of the quantised model: the mean of (y - x) xT, y being the float
    model's for the same token, over the same tokens and those that second moments borrow.
    """

    tokens: int
    diagonal: F32 | None = None
    second_moments: F32 | None = None
    drift: F32 | None = None


class Quantiser(Protocol):
    """Puts a matrix on the grid of `format`, given the statistics of its inputs that it `needs`."""

    @property
    def format(self) -> Format:
        """What it packs into."""

    @property
    def needs(self) -> Statistics:
        """What it wants to be told."""

    def quantize(self, rows: F32, inputs: InputStatistics | None) -> Packed:
        """Rows (N, C) float32 -> packed arrays of the format; None: nothing was measured."""


class PlacedRows(Protocol):
    """A file of full size, its rows filled in any order, that a later run can go on with."""

    path: Path

    def written(self) -> npt.NDArray[np.uint8]:
        """Which rows are in place, eight to a byte; they are flushed to the disk."""

    def adopt(self, old: Path, written: npt.NDArray[np.uint8]) -> None:
        """Go on with the file `old` of an earlier run, but for what precedes the rows."""


class Writer(Protocol):
    """A push sink for one target. It declares everything, takes every piece once, then closes."""

    target: str

    def declarations(self) -> Sequence[TensorDecl]:
        """Every tensor that the file will hold, in file order."""

    def format_of(self, slot: Slot) -> Format:
        """The format in which this writer wants the matrix of `slot`."""

    def open(self) -> None:
        """Create the files at their full size."""

    def outline(self) -> None:
        """Instead of writing: every file at its full size, with holes where weights belong.

        Headers, graph and settings are those of a real export, so that a plan can read them.
        """

    def write(self, slot: Slot, start: int, packed: Packed) -> None:
        """Put the rows of `slot` that begin at row `start` in place."""

    def close(self) -> Sequence[Path]:
        """Check that every byte declared was written, flush to disk, return the files."""

    def abort(self) -> None:
        """Let go of open files; the caller removes them."""

    def placed(self) -> Sequence[PlacedRows]:
        """The files that hold its rows, once it is open."""


class Runtime(Protocol):
    """An engine with one exported model open and one sequence in its KV cache."""

    name: str
    vocab_size: int
    context_length: int

    def forward(self, ids: Ids, *, last: bool = False) -> F32:
        """Token ids (T,) appended to the cached sequence -> logits (T, V) float32.

        With `last`, which is all that generation needs, those of the last position alone: (1, V).

        Raises EmoExportError when the sequence would exceed `context_length`.
        """

    def reset(self) -> None:
        """Empty the KV cache."""

    def close(self) -> None:
        """Free the model."""

    def describe(self) -> Mapping[str, str]:
        """Engine, version and settings that the figures of this runtime depend on."""


class Rewinding(Runtime, Protocol):
    """A runtime whose KV cache can be cut, taken out and put back."""

    def rewind(self, length: int) -> None:
        """Forget what comes after the first `length` positions of the cached sequence."""

    def state(self) -> Mapping[str, npt.NDArray[Any]]:
        """What the KV cache holds, by names of the engine's own."""

    def put_back(self, state: Mapping[str, npt.NDArray[Any]], length: int) -> None:
        """Fill the cache with a state of `length` positions.

        Raises EmoExportError for one that an engine with these settings did not give.
        """


class Tokenizer(Protocol):
    """Text <-> token ids, as the exported model's own files define them."""

    def encode(self, text: str) -> list[int]:
        """Text -> token ids."""

    def piece(self, token: int) -> bytes:
        """The bytes that one token stands for (empty for a control token)."""

    @property
    def stop_ids(self) -> frozenset[int]:
        """Tokens that end a text."""
