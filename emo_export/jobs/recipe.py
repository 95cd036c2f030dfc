"""What the files of a job depend on, by what a user calls it: see `emo_export/resuming.py`."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from emo_export.exporting.folder import tool_versions
from emo_export.files.manifest import VERSION as MANIFEST_VERSION
from emo_export.interfaces import Ids
from emo_export.model.checkpoint import Checkpoint

if TYPE_CHECKING:
    from emo_export.reference.probes import Probes


def recipe_of(checkpoint: Checkpoint, target: str, probes: Probes | None) -> dict[str, str]:
    """What everything that is made of a checkpoint depends on; `target` tells what that is."""
    files = [*checkpoint.files, checkpoint.path / "config.json"]
    stats = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return {
        "checkpoint": str([str(checkpoint.path.resolve()), *stats]),
        "version": str(sorted(tool_versions().items())),
        "target": target,
        "manifest": str(MANIFEST_VERSION),
        "held-out text": "" if probes is None else digest_of(probes.sequences),
    }


def digest_of(sequences: Sequence[Ids]) -> str:
    """SHA-256 of token ids (T,) each."""
    found = hashlib.sha256()
    for ids in sequences:
        found.update(len(ids).to_bytes(8, "little") + np.ascontiguousarray(ids, "<i8").tobytes())
    return found.hexdigest()
