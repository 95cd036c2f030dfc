"""Bringing a package to a device: one protocol, whatever carries the bytes.

Look at what is there, refuse where there is no room, remove what the package has no more, send the
rest from where an earlier copy broke off, and give each file its name when its SHA-256 there is
right. A transport implements `Store`.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from emo_export.errors import EmoExportError
from emo_export.files.manifest import NAME as MANIFEST
from emo_export.files.manifest import digest
from emo_export.files.target_entry import TargetEntry

GOLDEN = "golden.npz"
SPARE = 32 << 20  # bytes that a disk must have free beside what is sent
NAME_LENGTH = 100  # of a folder's name that its copy has; some file systems take no long one
Say = Callable[[str], None]


class Seen(NamedTuple):
    """What a device has of a package.

    `folder`: its path there. `missing`: the files that are not there -> the bytes of each that an
    earlier copy left. `free`: bytes on that disk.
    """

    folder: str
    missing: Mapping[str, int]
    free: int


class Store(Protocol):
    """Copies of packages on a device. `files` maps names in a package to their SHA-256 (hex)."""

    name: str

    def look(self, package: str, files: Mapping[str, str]) -> Seen:
        """What is there; from here on nobody else writes to the package."""

    def forget(self, package: str, files: Mapping[str, str], known: Sequence[str]) -> None:
        """Remove all but these files, their parts and what is `known`."""

    def send(self, package: str, name: str, sha256: str, local: Path, start: int) -> None:
        """Send a file from byte `start` on, which is where its part ends there."""

    def finish(self, package: str, name: str, sha256: str) -> bool:
        """Give a whole part its name; False, and no part, when its bytes are not the right ones."""

    def ready(self, package: str) -> None:
        """All is there: others may read it too."""


def send_package(
    store: Store,
    folder: Path,
    targets: Mapping[str, TargetEntry],
    say: Say,
    beside: int = 0,
) -> str:
    """Copy what judging these targets needs -> the path of the package there.

    `beside`: bytes that will be sent besides. Files that the package in `folder` has no more are
    removed there. Raises EmoExportError when a file is missing here, there is no room there, or the
    connection is lost.
    """
    package = _package_name(folder)
    files = {name: digest(folder / name) for name in _files_of(folder, targets)}
    seen = store.look(package, files)
    rest = sum((folder / name).stat().st_size - part for name, part in seen.missing.items())
    if (rest or beside) and seen.free < rest + beside + SPARE:
        raise EmoExportError(
            f"{store.name}: needs {(rest + beside + SPARE) / 1e6:.1f} MB for the copy, the disk of "
            f"{seen.folder} there has {seen.free / 1e6:.1f} MB free; free some space, or choose "
            "one --target"
        )
    if seen.missing:
        store.forget(package, files, _names(folder))
    for name, part in seen.missing.items():
        _send(store, package, name, files[name], folder / name, part, say)
    store.ready(package)
    return seen.folder


def _send(
    store: Store, package: str, name: str, sha256: str, local: Path, part: int, say: Say
) -> None:
    """One file, of which `part` bytes are there."""
    for start in dict.fromkeys((part, 0)):  # a part of other bytes is found out at the end
        size = local.stat().st_size
        resumed = f", of which {start / 1e6:.1f} MB are there" if start else ""
        say(f"copying {name} to {store.name}: {size / 1e6:.1f} MB{resumed}")
        store.send(package, name, sha256, local, min(start, size))
        if store.finish(package, name, sha256):
            return
    raise EmoExportError(
        f"{local}: the copy on {store.name} differs; did the file change meanwhile? start again"
    )


def _files_of(folder: Path, targets: Mapping[str, TargetEntry]) -> list[str]:
    """The files, relative to the folder, that judging these targets needs."""
    paths = {folder / MANIFEST, folder / GOLDEN}
    for entry in targets.values():
        for path in (folder / place for place in entry.paths):
            paths |= {p for p in path.rglob("*") if p.is_file()} if path.is_dir() else {path}
    for path in sorted(paths):
        if not path.is_file():
            raise EmoExportError(f"{path} is missing: judging on a device needs it there")
    return sorted(path.relative_to(folder).as_posix() for path in paths)


def _names(folder: Path) -> list[str]:
    """Files of other targets may stay where they are."""
    return [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()]


def _package_name(folder: Path) -> str:
    """The same for the same folder of the same machine, so that a new export replaces the old."""
    place = folder.resolve()
    place_digest = hashlib.sha256(os.fsencode(f"{platform.node()}\n{place}")).hexdigest()[:12]
    shown = re.sub(r"[^A-Za-z0-9_.-]", "-", place.name).lstrip(".-")[:NAME_LENGTH]
    return f"{shown or 'package'}-{place_digest}"
