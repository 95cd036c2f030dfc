"""How many threads an engine should use when nobody says."""

from __future__ import annotations

import os
from pathlib import Path

from emo_export.errors import EmoExportError

SYSFS = Path("/sys/devices/system/cpu")
MOST = 512
"""GGML_MAX_N_THREADS of ggml.h, beyond which it ends the process; ONNX Runtime would make them all
and take the memory of the machine."""


def threads_for(asked: int | None) -> int:
    """The threads of an engine: those asked for, or one per physical core.

    Raises EmoExportError for fewer than 1 or more than MOST.
    """
    if asked is None:
        return min(physical_cores(), MOST)
    if not 1 <= asked <= MOST:
        raise EmoExportError(f"threads is {asked}, expected 1 to {MOST}")
    return asked


def usable_cpus() -> frozenset[int]:
    """The processors that this process may run on (a container may pin it to a few)."""
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def physical_cores(cpus: frozenset[int] | None = None, sysfs: Path = SYSFS) -> int:
    """Cores behind `cpus` (default: the usable ones), two hyper-threads of a core counted once.

    Decoding waits for memory, so a second thread on a core only costs. Where the system does not
    tell which processors share a core (no sysfs), each one counts.
    """
    cpus = usable_cpus() if cpus is None else cpus
    lists = [sysfs / f"cpu{cpu}" / "topology" / "thread_siblings_list" for cpu in cpus]
    if not all(path.is_file() for path in lists):
        return max(1, len(cpus))
    return max(1, len({path.read_text(encoding="ascii").strip() for path in lists}))
