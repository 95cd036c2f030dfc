"""A target that exists as a source: its weights read back, and copied as they are stored."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from emo_export.errors import BadValueError, EmoExportError
from emo_export.interfaces import F32, Packed
from emo_export.model.finite import check_finite
from emo_export.model.names import Role, Slot, row_spans, slots

if TYPE_CHECKING:
    from emo_export.interfaces import Writer
    from emo_export.model.config import EmoConfig
    from emo_export.model.product import Product
    from emo_export.text.tokenizer import Encode


class Stored(Protocol):
    """The weights of a target. Holds no tensor."""

    def rows(self, slot: Slot, start: int, stop: int) -> F32:
        """Rows start..stop of a slot (stop - start, C), dequantised."""

    def packed(self, slot: Slot, start: int, stop: int) -> Packed:
        """The same rows as a writer of the family takes them: the bytes that are there."""

    def row_bytes(self, slot: Slot) -> int:
        """Bytes of a row of a slot."""

    def type_of(self, slot: Slot) -> str:
        """The name of a slot's format."""


@dataclass(frozen=True)
class StoredTensor:
    """The rows of a slot; see `emo_export.model.source.SourceTensor`."""

    weights: Stored
    slot: Slot
    file: Path

    @property
    def name(self) -> str:
        """The slot's name in a checkpoint."""
        return self.slot.name

    @property
    def dtype(self) -> str:
        """Its format."""
        return self.weights.type_of(self.slot)

    @property
    def row_bytes(self) -> int:
        """Bytes of a row, scales included."""
        return self.weights.row_bytes(self.slot)

    def rows(self, start: int, stop: int) -> F32:
        """Rows start..stop (stop - start, C), dequantised now.

        Raises EmoExportError for a value that is not finite.
        """
        rows = self.weights.rows(self.slot, start, stop)
        with _told(self.file, self.slot, start):
            check_finite(rows, f"is not a finite number, as {self.dtype}")
        return rows


@dataclass(frozen=True)
class Package:
    """One target at `path`; a `Source`. `raw` is what its checkpoint's config.json would be.

    `tokenizer` opens what encodes text for it; `writer` makes another of its kind from a product.
    """

    path: Path
    raw: Mapping[str, Any]
    config: EmoConfig
    weights: Stored
    files: Sequence[Path]
    tokenizer: Callable[[], AbstractContextManager[Encode]]
    writer: Callable[[Product, Path], Writer]
    pruning: Mapping[str, Any] | None = None

    def at(self, slot: Slot) -> StoredTensor:
        """The rows of a slot."""
        return StoredTensor(self.weights, slot, self.files[0])

    @property
    def nbytes(self) -> int:
        """Bytes of all slots."""
        return sum(
            self.weights.row_bytes(slot) * (stop - start)
            for slot in slots(self.config)
            for start, stop in row_spans(slot, self.config)
        )


def copy_rows(package: Package, product: Product, writer: Writer) -> None:
    """Write every row of a product of a package as the package stores it.

    Raises EmoExportError for rows that are not finite numbers.
    """
    stored = package.weights
    for slot in slots(product.config):
        origin = product.origin(slot)
        if slot.role == Role.ROUTER:
            whole = stored.packed(origin, 0, package.config.layers[slot.layer].num_experts)
            kept = list(product.kept[slot.layer])
            with _told(package.files[0], origin, 0):
                writer.format_of(slot).check(whole)
            writer.write(slot, 0, {part: rows[kept] for part, rows in whole.items()})
            continue
        for start, stop in row_spans(slot, product.config):
            packed = stored.packed(origin, start, stop)
            with _told(package.files[0], origin, start):
                writer.format_of(slot).check(packed)
            writer.write(slot, start, packed)


@contextmanager
def _told(file: Path, slot: Slot, start: int) -> Iterator[None]:
    """Name the place of a bad value among the rows from `start` on."""
    try:
        yield
    except BadValueError as error:
        raise EmoExportError(f"{file}: {slot.name}: {error.below(start)}") from error
