"""One output of an export."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from emo_export.files.target_entry import TargetEntry
from emo_export.interfaces import F32, Format, Writer
from emo_export.model.grid import Grid
from emo_export.model.names import Slot

if TYPE_CHECKING:
    from emo_export.model.scheme import QuantScheme

Rows = Callable[[Slot, int, int], F32]
"""(slot, first row, end row) -> rows (end - first, C) float32."""


@dataclass(frozen=True)
class Target:
    """What the manifest says of an output, what writes it and with which formats.

    `read_back` gives the weights that the finished file holds.
    """

    entry: TargetEntry
    writer: Writer
    scheme: QuantScheme
    read_back: Callable[[], Rows]
    grid_of: Callable[[Format], Grid | None]
    """The grid of one of its formats; None for one that can't be rounded column by column."""
    trunk: Collection[str] = ()
    """The tensors in its entry's trunk."""
    twin_nbytes: int = 0
    """Bytes in TMPDIR that comparing it with exact arithmetic takes."""
    domain: str = ""
    """The domain whose folder it goes to, where an export makes several."""

    @property
    def name(self) -> str:
        """`gguf:q4_0`."""
        return str(self.entry.spec)

    @property
    def nbytes(self) -> int:
        """Bytes of all declared tensors."""
        return sum(decl.nbytes for decl in self.writer.declarations())

    @property
    def trunk_nbytes(self) -> int:
        """Bytes of the trunk's tensors."""
        decls = self.writer.declarations()
        return sum(decl.nbytes for decl in decls if decl.name in self.trunk)

    @property
    def is_lossless(self) -> bool:
        """Every matrix keeps float32, so the dequantised reference is the original's."""
        return all(kind.name == "f32" for kind in self.scheme.formats.values())
