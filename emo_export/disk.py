"""Writing files: enough space beforehand, and a sentence that names the file when it fails."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from emo_export.errors import EmoExportError


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a failed write into an error that says which file and why.

    The OSError of a full disk names no file: it comes from a handle that is already open.
    """
    try:
        yield
    except OSError as error:
        advice = "; free some space" if error.errno == errno.ENOSPC else ""
        raise EmoExportError(f"{path}: cannot be written ({error.strerror}){advice}") from error


def check_space(folder: Path, needed: int) -> None:
    """Raise EmoExportError when the disk of `folder` has fewer than `needed` bytes free."""
    existing = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise EmoExportError(
            f"{folder}: needs {needed / 1e6:.1f} MB, its disk has {free / 1e6:.1f} MB free"
        )
