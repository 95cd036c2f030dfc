"""What is made in hiding, and takes its name in one rename when it is whole and on the disk.

`out` is made in `.out.partial/out`. Beside it lie the lock, which keeps two exports to one name
apart, and what an interrupted run can go on with. Whatever holds no lock was left by a process that
has ended.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from emo_export.base.disk import flush, flush_all
from emo_export.base.lock import is_at, sign, signer, take
from emo_export.base.scratch import remove_abandoned
from emo_export.errors import EmoExportError

RESUME = "resume"
"""Beside what is being made: what a later run goes on with."""
LOCK, OLD = "lock", "old"
_HERE = -100  # AT_FDCWD; renameat2 of glibc 2.28, flags of linux/fs.h
_NO_REPLACE, _EXCHANGE = 1, 2
_UNKNOWN = (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP)  # file systems that know no flags


@contextmanager
def staging(
    final: Path,
    overwrite: bool,
    is_ours: Callable[[Path], bool],
    wanted: Callable[[Path], bool] = lambda left: False,
) -> Iterator[Path]:
    """A place, in a hidden folder, for the file or folder that takes the name `final`.

    It does so only when everything went well; with `overwrite` it then changes places with what
    `is_ours`, which is whole until then. What an ended run has left is removed, unless `wanted`
    says of its hidden folder that this run goes on with it. A folder RESUME that the caller makes
    in it stays when this run is interrupted.

    Raises EmoExportError when `final` exists without `overwrite`, when it is not ours, and while
    another process makes it.
    """
    hidden = final.parent / f".{final.name}.partial"
    handle, begun = None, False
    try:  # from the first: a signal may come as soon as the folder is there
        try:
            if not os.path.lexists(hidden):
                _refuse(final, overwrite, is_ours)
            final.parent.mkdir(parents=True, exist_ok=True)
            handle = _take(final, hidden)
            remove_abandoned()
            _restore(final, hidden)
            _refuse(final, overwrite, is_ours)
            _tidy(final, hidden, wanted)
        except OSError as error:
            raise EmoExportError(f"{final}: cannot be made ({error.strerror})") from error
        begun = True
        yield hidden / final.name
        _publish(hidden, final, overwrite, is_ours)
    except BaseException as error:
        stays = not (begun and isinstance(error, Exception)) and (hidden / RESUME).is_dir()
        if not stays:
            _remove(hidden, handle)
        raise
    else:
        _remove(hidden, handle)
    finally:
        if handle is not None:
            os.close(handle)


def _take(final: Path, hidden: Path) -> int:
    """The hidden folder and its lock, which this process then holds."""
    while True:
        hidden.mkdir(exist_ok=True)
        try:
            handle = take(hidden / LOCK)
        except FileNotFoundError:  # another process has just ended and removed it
            continue
        if handle is None:
            raise EmoExportError(
                f"{final}: another emo-export is making it{signer(hidden / LOCK)}; wait for it, or "
                "choose another -o"
            )
        sign(handle)
        return handle


def _refuse(final: Path, overwrite: bool, is_ours: Callable[[Path], bool]) -> None:
    try:
        os.fspath(final.absolute()).encode()
    except UnicodeEncodeError as error:
        raise EmoExportError(
            f"{final}: is not UTF-8, and the engines open no such path; choose another"
        ) from error
    if not os.path.lexists(final):
        return
    ours = is_ours(final)
    if not overwrite:
        remedy = ", or add --overwrite" if ours else ", for it was not made by this command"
        raise EmoExportError(f"{final}: exists already; choose another -o{remedy}")
    if not ours:
        raise EmoExportError(
            f"{final}: was not made by this command, so --overwrite leaves it alone"
        )


def _restore(final: Path, hidden: Path) -> None:
    """Put back what a run had moved that was killed before its own took the name."""
    if (hidden / OLD).exists() and not os.path.lexists(final):
        (hidden / OLD).rename(final)


def _tidy(final: Path, hidden: Path, wanted: Callable[[Path], bool]) -> None:
    """Remove what an ended run has left and this one does not go on with."""
    stays = {LOCK, RESUME, final.name} if wanted(hidden) else {LOCK}
    for left in hidden.iterdir():
        if left.name in stays:
            continue
        if left.is_dir() and not left.is_symlink():
            shutil.rmtree(left)
        else:
            left.unlink()


def _remove(hidden: Path, handle: int | None) -> None:
    """All in it, then the lock that is held, then the folder, unless it is another's by then."""
    with suppress(OSError):
        if handle is not None:
            _tidy(hidden, hidden, lambda left: False)
            if is_at(handle, hidden / LOCK):
                (hidden / LOCK).unlink()
        hidden.rmdir()


def _publish(hidden: Path, final: Path, overwrite: bool, is_ours: Callable[[Path], bool]) -> None:
    place = hidden / final.name
    try:
        flush_all(place)
        _refuse(final, overwrite, is_ours)  # it may have come meanwhile, or changed
        # Or another run would go on with what changes places with it now.
        if (hidden / RESUME).exists():
            shutil.rmtree(hidden / RESUME)
            flush(hidden)
        if not os.path.lexists(final):
            if not _renamed(place, final, _NO_REPLACE):
                place.rename(final)
        elif not _renamed(place, final, _EXCHANGE):
            _swap(place, final, hidden / OLD)
        flush(final.parent)
    except OSError as error:
        raise EmoExportError(f"{final}: cannot be put in place ({error.strerror})") from error


def _swap(place: Path, final: Path, old: Path) -> None:
    """Two renames, where there is no exchange; `_tidy` puts right what a kill between them left."""
    final.rename(old)
    try:
        place.rename(final)
    except BaseException:
        if not os.path.lexists(final):
            old.rename(final)
        raise


def _renamed(one: Path, other: Path, flag: int) -> bool:
    """Rename as linux/fs.h says; False where the system or the file system does not know how."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    if rename(_HERE, os.fsencode(one), _HERE, os.fsencode(other), ctypes.c_uint(flag)) == 0:
        return True
    number = ctypes.get_errno()
    if number in _UNKNOWN:
        return False
    raise OSError(number, os.strerror(number), str(other))
