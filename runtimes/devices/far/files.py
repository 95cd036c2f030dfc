"""Files of a package on the far side of a connection: what is there, and taking the rest in.

A file arrives as `NAME.DIGEST.part`, which a later connection goes on with, and gets its name when
its SHA-256 is the right one. Standard library only.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from emo_export.base.disk import flush
from emo_export.errors import EmoExportError

RECORD, LOCK = ".digests.json", ".lock"
PART = ".part"
PIECE = 1 << 20
LOCK_SECONDS = 75.0  # longer than a connection that was lost keeps its lock


class Body(Protocol):
    """What follows a request: bytes from the other side."""

    def pieces(self, count: int, size: int) -> Iterator[bytes]:
        """Exactly `count` bytes, in pieces of up to `size`."""


class Package:
    """The far copy of one package's folder, locked while it is in use."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock: BinaryIO | None = None

    def missing(self, files: Mapping[str, str]) -> dict[str, int]:
        """Which files (path -> SHA-256) are not there -> the bytes that a part has of each."""
        record = self._record()
        lacking = {}
        for name, digest in files.items():
            path = self.folder / name
            if not _is_recorded(record.get(name), path) and path.is_file():
                record[name] = _entry(path)
            if not path.is_file() or record[name][2] != digest:
                part = part_of(path, digest)
                lacking[name] = part.stat().st_size if part.is_file() else 0
        if self.folder.is_dir():
            self._write_record(record)
        return lacking

    def lock(self, *, alone: bool) -> None:
        """Wait until nobody writes into the package, or nobody uses it.

        Raises EmoExportError when that takes too long.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        if self._lock is None:
            self._lock = (self.folder / LOCK).open("ab")
        end = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                fcntl.flock(self._lock, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() > end:
                    raise EmoExportError(
                        f"{self.folder}: another emo-export uses it; wait for it to end"
                    ) from None
                time.sleep(0.2)

    def forget_others(self, files: Mapping[str, str], known: Iterable[str]) -> None:
        """Remove all but `files` (path -> SHA-256), their parts and what is `known`."""
        parts = {part_of(Path(name), digest).as_posix() for name, digest in files.items()}
        kept = {RECORD, LOCK, *files, *parts, *known}
        for path in sorted(self.folder.rglob("*"), reverse=True):
            name = path.relative_to(self.folder).as_posix()
            if path.is_dir():
                if not any(path.iterdir()):
                    path.rmdir()
            elif name not in kept:
                path.unlink()

    def receive(self, name: str, digest: str, offset: int, count: int, body: Body) -> None:
        """Put `count` bytes into the part of a file, at `offset`, where it ends so far.

        Raises EmoExportError when they can't be written; the bytes are read in any case.
        """
        part = part_of(self.folder / name, digest)
        failure: OSError | None = None
        with contextlib.ExitStack() as stack:
            try:
                part.parent.mkdir(parents=True, exist_ok=True)
                handle = stack.enter_context(part.open("ab", buffering=0))
                handle.truncate(offset)
            except OSError as error:
                failure = error
            for piece in body.pieces(count, PIECE):
                failure = failure or _written(handle, piece)
        if failure is not None:
            raise EmoExportError(f"{part}: {_sentence(failure)}") from failure

    def finish(self, name: str, digest: str) -> bool:
        """Give a whole part its name; False, and no part, when its bytes are not the right ones."""
        path = self.folder / name
        part = part_of(path, digest)
        with part.open("rb") as handle:
            found = hashlib.file_digest(handle, "sha256").hexdigest()
            os.fsync(handle.fileno())
        if found != digest:
            part.unlink()
            return False
        part.replace(path)
        flush(path.parent)
        record = self._record()
        record[name] = _entry(path, digest)
        self._write_record(record)
        return True

    def _record(self) -> dict[str, list[Any]]:
        try:
            found = json.loads((self.folder / RECORD).read_text("utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def _write_record(self, record: Mapping[str, list[Any]]) -> None:
        made = self.folder / f"{RECORD}.new"
        made.write_text(json.dumps(record), "utf-8")
        made.replace(self.folder / RECORD)


def part_of(path: Path, digest: str) -> Path:
    """Where the bytes of a file with this SHA-256 are gathered."""
    return path.with_name(f"{path.name}.{digest[:16]}{PART}")


def _is_recorded(entry: list[Any] | None, path: Path) -> bool:
    """Whether a file is as it was when its digest was taken."""
    if entry is None or not path.is_file():
        return False
    found = path.stat()
    return entry[:2] == [found.st_size, found.st_mtime_ns]


def _entry(path: Path, digest: str | None = None) -> list[Any]:
    found = path.stat()
    if digest is None:
        with path.open("rb") as handle:
            digest = hashlib.file_digest(handle, "sha256").hexdigest()
    return [found.st_size, found.st_mtime_ns, digest]


def _written(handle: Any, piece: bytes) -> OSError | None:
    """Write all of a piece; what went wrong otherwise."""
    rest = memoryview(piece)
    try:
        while rest:
            rest = rest[handle.write(rest) :]
    except OSError as error:
        return error
    return None


def _sentence(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"cannot be written ({error.strerror}); free some space there and start again"
    return f"cannot be written ({error.strerror})"
