"""Where files are written: the cache, enough space, and an error that names the file."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from emo_export.base.lock import is_at, take
from emo_export.errors import EmoExportError


def cache_folder(name: str, remedy: str) -> Path:
    """`emo-export/NAME` in $XDG_CACHE_HOME or ~/.cache, which need not exist.

    Raises EmoExportError with the remedy where this user has no home folder.
    """
    given = Path(os.environ.get("XDG_CACHE_HOME", ""))
    try:
        base = given if given.is_absolute() else Path.home() / ".cache"
    except RuntimeError as error:
        raise EmoExportError(f"no home folder is known; {remedy}") from error
    return base / "emo-export" / name


def make_private(folder: Path) -> None:
    """Make a folder that is this user's alone, and those above it; one that is there stays so."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)


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


def free_on(folder: Path) -> tuple[int, int]:
    """The disk that `folder` is or will be on, as a number, and the bytes free there."""
    existing = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    return existing.stat().st_dev, shutil.disk_usage(existing).free


def check_space(folder: Path, needed: int) -> None:
    """Raise EmoExportError when the disk of `folder` has fewer than `needed` bytes free."""
    free = free_on(folder)[1]
    if free < needed:
        raise EmoExportError(
            f"{folder}: needs {needed / 1e6:.1f} MB, its disk has {free / 1e6:.1f} MB free"
        )


def check_writable(path: Path) -> None:
    """Raise EmoExportError when a file of this name can't be written, before the work it is for.

    A name that is free stays free; a file that is there is left as it is.
    """
    if path.is_dir():
        raise EmoExportError(f"{path}: is a folder; name a file in it")
    if not path.parent.is_dir():
        raise EmoExportError(f"{path}: there is no folder {path.parent}; make it first")
    with writing(path):
        if path.exists() and not path.is_file():  # a device or a pipe
            path.open("ab").close()
            return
        real = path.resolve()
        if real.exists():
            real.open("r+b").close()
        tempfile.TemporaryFile(dir=real.parent).close()


def write_whole(path: Path, content: bytes) -> None:
    """Write a file whose name never stands for a part of it.

    A link stays a link, and a device or a pipe is written to instead of being replaced. Raises
    EmoExportError when it can't be written.
    """
    with whole(path) as file:
        file.write(content)


@contextmanager
def whole(path: Path) -> Iterator[BinaryIO]:
    """As `write_whole`, of what is written to the file that is given."""
    with writing(path):
        if path.exists() and not path.is_file():
            with path.open("wb") as file:
                yield file
            return
        real = path.resolve()
        temporary = unfinished(real)
        handle = take(temporary)
        if handle is None:
            raise EmoExportError(f"{path}: another process is writing it; start again")
        try:
            with open(handle, "wb", closefd=False) as file:
                file.truncate()  # what a killed process has left
                yield file
            os.fsync(handle)
            temporary.replace(real)
            flush(real.parent)
        finally:
            if is_at(handle, temporary):
                temporary.unlink()
            os.close(handle)


def unfinished(path: Path) -> Path:
    """Where `write_whole` writes; what a killed process has left there, the next one replaces."""
    return path.with_name(f".{path.name}.partial")


def flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def flush_all(place: Path) -> None:
    """Wait until a file, or a folder with all that is in it, is on the disk."""
    for path in (*place.rglob("*"), place):
        if not path.is_symlink():
            flush(path)


def allocated(folder: Path) -> int:
    """Bytes of the disk that the files of a folder take; what was never written takes none."""
    return sum(512 * path.lstat().st_blocks for path in folder.rglob("*") if path.is_file())


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files of a folder."""
    if path.is_file():
        return path.stat().st_size
    return sum(inner.stat().st_size for inner in path.rglob("*") if inner.is_file())
