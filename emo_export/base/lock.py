"""A lock on a file or folder, which the system lets go of when its holder ends, however that was.

The lock of a dead process is no lock, and a number that the system has given to another process
means nothing: `flock` alone decides. A number in the file is for sentences.
"""

from __future__ import annotations

import os
from pathlib import Path

from emo_export.base.posix import need_posix
from emo_export.errors import EmoExportError

FILE = os.O_RDWR | os.O_CREAT
FOLDER = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0)


def take(path: Path, flags: int = FILE) -> int | None:
    """The descriptor that holds the lock until it is closed; None where another process holds it.

    `flags`: FILE makes a file that is missing; FOLDER locks a folder. Raises OSError where it can't
    be opened, and EmoExportError where the file system has no locks, and on Windows.
    """
    need_posix()
    import fcntl

    while True:
        handle = os.open(path, flags | os.O_NOFOLLOW, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if is_at(handle, path):
                return handle
        except BlockingIOError:
            os.close(handle)
            return None
        except OSError as error:
            os.close(handle)
            raise EmoExportError(
                f"{path.parent}: its file system has no locks ({error.strerror}), which keep two "
                "processes apart; use another disk"
            ) from error
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # its last holder has removed it meanwhile


def is_at(handle: int, path: Path) -> bool:
    """Whether an open file or folder still has this name."""
    try:
        return os.path.samestat(os.fstat(handle), path.lstat())
    except FileNotFoundError:
        return False


def sign(handle: int) -> None:
    """Write the number of this process into a file that it holds."""
    os.ftruncate(handle, 0)
    os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)


def signer(path: Path) -> str:
    """Who holds a file, for a sentence: ` (process 7)`; empty where it does not tell."""
    try:
        said = path.read_text("ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""
    return f" (process {said})" if said.isdecimal() else ""
