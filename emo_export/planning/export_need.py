"""What an export takes of the machine that runs it: disk and memory.

Disk is counted from the files. Memory is an estimate, fitted to exports of emo-nano and of
synthetic models; `python -m tests.bench.plan` compares.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from emo_export.model.config import EmoConfig
from emo_export.model.names import blocks, row_spans, shape_of
from emo_export.model.product import Product
from emo_export.parity.golden import SEQUENCE, sequences_kept
from emo_export.planning.outline import Planned

PROCESS, TORCH = 65_000_000, 315_000_000
"""Python with what converting imports, and what the reference adds; resident, measured."""
IN_FLIGHT = 6  # pieces at once, as measured: READ_AHEAD, one being read, two packed, one written
STATES = 2  # vectors of the hidden size that a token of the reference holds
HELDOUT_TOKENS, BUILT_IN_TOKENS = 4384, 2048  # of the reference, at most


@dataclass(frozen=True)
class ExportNeed:
    """Of one export to several targets.

    `disk`: bytes of the targets and at most of golden.npz, beside the checkpoint. `read`: bytes of
    the checkpoint that are read (None: not known without its weights). Memory at its peak, with the
    libraries: `converting` with --no-golden, `with_reference` with --no-validate. Validation opens
    each target in the same process: `validated_least` is what it takes at least. `tokens`: of the
    reference, at most.
    """

    disk: int
    read: int | None
    converting: int
    with_reference: int
    validated_least: int
    tokens: int


def export_need(product: Product, planned: Sequence[Planned], read: int | None) -> ExportNeed:
    """Of all planned targets of a product at once."""
    config = product.config
    logits = sequences_kept(SEQUENCE, config.vocab_size) * SEQUENCE * config.vocab_size * 4
    golden = (len(planned) + 1) * logits
    pieces = _piece_bytes(config)
    converting = PROCESS + _most_in_flight(pieces) + len(planned) * max(pieces)
    tokens = HELDOUT_TOKENS if (product.path / "heldout").is_dir() else BUILT_IN_TOKENS
    reference = converting + TORCH + golden + STATES * tokens * config.hidden_size * 4
    runs = [each.running for each in planned]
    opened = max((run.weights + run.cache + run.work for run in runs), default=0)
    disk = sum(each.nbytes for each in planned) + golden
    return ExportNeed(disk, read, converting, reference, reference + opened, tokens)


def _piece_bytes(config: EmoConfig) -> list[int]:
    """Bytes in float32 of every piece in which weights travel, in order."""
    found = []
    for block in blocks(config):
        for slot in (slot for step in block.steps for slot in step.slots):
            columns = shape_of(slot, config)[-1]
            found += [4 * columns * (stop - start) for start, stop in row_spans(slot, config)]
    return found


def _most_in_flight(pieces: Sequence[int]) -> int:
    """Of pieces that follow each other, some read ahead, one packed and one written and fed."""
    return max(sum(pieces[at : at + IN_FLIGHT]) for at in range(len(pieces)))
