"""Opening a file that came from a stranger: never a pipe, a device or a socket under its name.

Reading one of those could wait for ever, or never end.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from fnmatch import fnmatchcase
from io import BufferedReader
from pathlib import Path

from emo_export.errors import EmoExportError

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}

_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
"""Windows has no O_NONBLOCK, and changes what it reads without O_BINARY."""


def open_plain(path: Path) -> BufferedReader:
    """Open a regular file, or a link to one, to be read from its first byte.

    Raises EmoExportError when it is missing, can't be read, or is no file.
    """
    try:
        # A device may do something when it is opened, so the name is looked at before.
        _check(path, path.stat())
        handle = os.open(path, _FLAGS)
        try:
            _check(path, os.fstat(handle))
            return os.fdopen(handle, "rb")
        except BaseException:
            os.close(handle)
            raise
    except FileNotFoundError as error:
        if path.is_symlink():
            raise EmoExportError(f"{path}: is a link that leads to no file") from error
        raise EmoExportError(f"there is no file {path}") from error
    except OSError as error:
        raise EmoExportError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:  # a zero byte in the name
        raise EmoExportError(f"{path!r}: is no name of a file ({error})") from error


def check_plain(folder: Path, patterns: Iterable[str]) -> None:
    """Look at each name in a folder that a pattern (`name`, `*.end`, `inner/*.end`) is for.

    Raises EmoExportError as `open_plain`, also for a link that leads nowhere: whoever asks for an
    optional file by `is_file` would take that for none.
    """
    for pattern in patterns:
        inner, _, last = pattern.rpartition("/")
        try:
            found = sorted((folder / inner).iterdir())
        except FileNotFoundError:
            found = []
        except OSError as error:
            raise EmoExportError(f"{folder / inner}: cannot be read ({error.strerror})") from error
        for path in found:
            if fnmatchcase(path.name, last):
                open_plain(path).close()


def read_plain(path: Path, most: int) -> bytes:
    """All bytes of a file. Raises EmoExportError as `open_plain`, and beyond `most` bytes."""
    with open_plain(path) as handle:
        size = os.fstat(handle.fileno()).st_size
        if size > most:
            raise EmoExportError(
                f"{path}: has {size} bytes, more than the {most} that any file of its kind needs"
            )
        try:
            return handle.read(most)
        except OSError as error:
            raise EmoExportError(f"{path}: cannot be read ({error.strerror})") from error


def _check(path: Path, found: os.stat_result) -> None:
    kind = stat.S_IFMT(found.st_mode)
    if kind != stat.S_IFREG:
        raise EmoExportError(f"{path}: is {_KINDS.get(kind, 'no file')}, expected a file")
