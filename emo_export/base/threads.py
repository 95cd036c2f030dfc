"""How many threads an engine should use when nobody says."""

from __future__ import annotations

import os
from pathlib import Path

SYSFS = Path("/sys/devices/system/cpu")


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
