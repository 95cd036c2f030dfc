"""What is let go of goes back to the system, though small blocks lie between large ones."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

CHILD = """
import ctypes, sys
from pathlib import Path
from emo_export.base.large_blocks import return_large_blocks
from emo_export.base.process_memory import sizes

if sys.argv[1] == "returned":
    return_large_blocks()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
libc.free(libc.malloc(30 << 20))  # from here on glibc keeps blocks of up to this size
large = []
for _ in range(10):
    large.append(libc.malloc(20 << 20))
    ctypes.memset(large[-1], 1, 20 << 20)
    libc.malloc(300 << 10)  # larger than anything free in between: it lies after the block
for block in large:
    libc.free(block)
print(sizes(Path("/proc/self/status"))["RssAnon"])
"""


def anonymous(how: str) -> int:
    command = [sys.executable, "-c", CHILD, how]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's: run on glibc")
def test_large_blocks_are_returned() -> None:
    assert anonymous("returned") < anonymous("kept") - 100_000_000
