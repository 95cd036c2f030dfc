"""What the C library does with memory that ONNX Runtime frees."""

from __future__ import annotations

import ctypes

M_MMAP_THRESHOLD = -3  # <malloc.h> of glibc
LARGE = 128 << 10


def return_large_blocks() -> bool:
    """Let blocks of 128 KiB and more go back to the system as soon as they are freed.

    glibc raises that limit itself, up to 32 MiB, whenever a larger block is freed: the scratch
    memory of packing then stays with the process, half of the weights where experts are separate.
    False where the C library has no such setting (musl returns such blocks anyway).
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # TypeError: Windows has no handle of all symbols
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, LARGE))
