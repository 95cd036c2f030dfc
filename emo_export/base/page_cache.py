"""Files out of the page cache, so that a process that reads them is charged for them.

A cgroup is charged for a page of a file when it is brought into memory; pages that are there
already, of an earlier run, cost it nothing, and a model too large would seem to fit.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterable
from pathlib import Path

from emo_export.errors import EmoExportError


def drop(files: Iterable[Path]) -> dict[Path, int]:
    """Drop files from the page cache; answers the bytes of each that stayed in memory.

    Pages stay that another process has mapped. Raises EmoExportError when a file can't be read.
    """
    stayed = {}
    for file in files:
        try:
            with file.open("rb") as handle:
                os.fsync(handle.fileno())  # what is not on the disk yet can't be dropped
                os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                if left := _resident(handle.fileno()):
                    stayed[file] = left
        except OSError as error:
            raise EmoExportError(
                f"{file}: cannot be dropped from the page cache ({error.strerror})"
            ) from error
    return stayed


def resident(file: Path) -> int:
    """Bytes of a file that are in memory. Linux tells this of files that one may write alone.

    Of others it says that all is there. Raises OSError when the file can't be read.
    """
    with file.open("rb") as handle:
        return _resident(handle.fileno())


def _resident(descriptor: int) -> int:
    size = os.fstat(descriptor).st_size
    if size == 0:
        return 0
    libc = ctypes.CDLL(None, use_errno=True)
    pages = (ctypes.c_ubyte * -(-size // mmap.PAGESIZE))()
    # A private mapping: ctypes gives no address of one that can't be written.
    with mmap.mmap(descriptor, size, access=mmap.ACCESS_COPY) as mapped:
        start = ctypes.c_char.from_buffer(mapped)
        try:
            address = ctypes.c_void_p(ctypes.addressof(start))
            if libc.mincore(address, ctypes.c_size_t(size), pages) != 0:
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        finally:
            del start  # the mapping can't be closed before
    return sum(page & 1 for page in pages) * mmap.PAGESIZE
