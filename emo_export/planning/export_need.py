"""What an export takes of the machine that runs it: disk, memory, and at least how much time.

Memory is an estimate (docs/targets.md says how far off it was); disk is counted from the files.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from emo_export.base.page_cache import drop
from emo_export.errors import EmoExportError
from emo_export.model.product import Product
from emo_export.parity.golden import SEQUENCE, sequences_kept
from emo_export.planning.outline import Planned

READ_SECONDS = 1.0
CHUNK = 8 << 20


@dataclass(frozen=True)
class ExportNeed:
    """Of one export to several targets.

    `disk`: bytes of the targets and at most of golden.npz, beside the checkpoint. `read`: bytes of
    the checkpoint that are read (None: not known without its weights).
    """

    disk: int
    read: int | None

    def seconds(self, bytes_per_s: float) -> float | None:
        """What reading alone takes, which no export can beat."""
        return None if self.read is None else self.read / bytes_per_s


def export_need(product: Product, planned: Sequence[Planned], read: int | None) -> ExportNeed:
    """Of all planned targets of a product at once."""
    vocab = product.config.vocab_size
    logits = sequences_kept(SEQUENCE, vocab) * SEQUENCE * vocab * 4
    golden = (len(planned) + 1) * logits
    return ExportNeed(sum(each.nbytes for each in planned) + golden, read)


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
