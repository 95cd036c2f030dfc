"""Temporary folders, which the next process removes where their owner was killed.

The owner holds a lock on its folder for as long as it lives.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from types import TracebackType

from emo_export.base.lock import FOLDER, take
from emo_export.base.posix import need_posix
from emo_export.base.uninterrupted import uninterrupted
from emo_export.errors import EmoExportError

PREFIX = "emo-export-tmp-"


class Scratch:
    """A folder in TMPDIR, with what it is for in its name, until `close`."""

    def __init__(self, purpose: str) -> None:
        """Raises OSError where none can be made, EmoExportError on Windows."""
        need_posix()
        self._handle: int | None = None
        with uninterrupted():  # the search for TMPDIR and a folder half made stay behind
            remove_abandoned()
            self._make(purpose)

    def _make(self, purpose: str) -> None:
        while True:
            self._folder = tempfile.TemporaryDirectory(prefix=f"{PREFIX}{purpose}-")
            try:
                self._handle = take(self.path, FOLDER)
            except FileNotFoundError:  # taken for abandoned before it was locked
                continue
            except EmoExportError:  # no locks there: nobody takes it for abandoned
                return
            if self._handle is not None:
                return

    @property
    def path(self) -> Path:
        """The folder."""
        return Path(self._folder.name)

    def close(self) -> None:
        """Remove it; a second call does nothing."""
        self._folder.cleanup()
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def __enter__(self) -> Path:
        return self.path

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def remove_abandoned() -> None:
    """Remove the folders in TMPDIR whose owners, processes of this user, have ended."""
    with os.scandir(tempfile.gettempdir()) as entries:
        left = [entry for entry in entries if entry.name.startswith(PREFIX)]
    for entry in left:
        try:
            if entry.stat(follow_symlinks=False).st_uid != os.geteuid():
                continue
            handle = take(Path(entry.path), FOLDER)
        except (OSError, EmoExportError):  # another process was faster; a link; no locks
            continue
        if handle is not None:
            shutil.rmtree(entry.path, ignore_errors=True)
            os.close(handle)
