"""Making one variant: what a worker of the cluster does."""

from __future__ import annotations

import threading
import time
import traceback
from pathlib import Path

from emo_export.base.disk import size_of
from emo_export.errors import EmoExportError
from emo_export.exporting.package import ALONE
from emo_export.files.manifest import NAME as MANIFEST
from emo_export.files.manifest import digest
from emo_export.jobs.export import export_checkpoint
from emo_export.model.checkpoint import Checkpoint
from emo_export.parity.golden import Golden
from emo_export.parity.outcome import Outcome, outcome_of
from emo_export.sweep.record import Asked, Inputs, Record, differing
from emo_export.sweep.variants import Variant

BUG = 70  # the exit code of what is no EmoExportError

_one_at_a_time = threading.Lock()  # a worker of several threads has the memory for one export


def make(variant: Variant, asked: Asked, out: Path) -> Outcome:
    """Export into `out`, judge, and leave the record beside it. A failure is an outcome, too."""
    with _one_at_a_time:
        start = time.monotonic()
        manifest = None
        try:
            if not out.is_dir():
                raise EmoExportError(f"{out}: is no folder on this worker; workers share the disk")
            others = differing(asked, Inputs().asked(variant))
            if others:
                raise EmoExportError(f"this worker has other {', '.join(others)} than the client")
            outcome = _export(variant, out / variant.label.name, start)
            manifest = digest(out / variant.label.name / MANIFEST)
        except Exception as error:
            seconds = time.monotonic() - start
            outcome = Outcome(variant.label, seconds, _exit_code(error), error=_told(error))
        if out.is_dir():
            Record(asked, manifest, outcome).save(out)
        return outcome


def _export(variant: Variant, folder: Path, start: float) -> Outcome:
    label = variant.label
    checkpoint = Checkpoint.open(variant.checkpoint)
    made = export_checkpoint(checkpoint, folder, [label.target], variant.options)[ALONE]
    (result,) = made.results
    (entry,) = made.manifest.targets.values()
    nbytes, golden = size_of(folder / entry.path), Golden.load(folder / "golden.npz")
    seconds = time.monotonic() - start
    return outcome_of(label, result, golden, nbytes, seconds, variant.domains)


def _exit_code(error: Exception) -> int:
    if isinstance(error, EmoExportError):
        return error.exit_code
    return EmoExportError.exit_code if isinstance(error, OSError) else BUG


def _told(error: Exception) -> str:
    if isinstance(error, EmoExportError | OSError):
        return str(error)
    return "".join(traceback.format_exception(error))
