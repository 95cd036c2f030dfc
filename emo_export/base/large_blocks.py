"""Large blocks of memory that go back to the system as soon as they are let go of.

glibc keeps what is freed below a size that it raises by itself, up to 32 MB: blocks as large as the
pieces of a weight. Small ones in use between them keep them from being joined or returned.
Source: mallopt(3).
"""

from __future__ import annotations

import ctypes
import sys

LARGE = 4 << 20
KEPT = 16 << 20
"""Free at the end of a heap, so that smaller blocks don't ask for it again and again."""

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3


def return_large_blocks() -> None:
    """From now on, in this process; where the C library has no such setting, nothing changes."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, LARGE)
        mallopt(_TRIM_THRESHOLD, KEPT)
