"""Whether the files of a folder are the ones that its manifest names, byte for byte."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from emo_export.errors import EmoExportError
from emo_export.files.domains import NAME as DOMAINS
from emo_export.files.domains import domains_text, is_domains, read_domains
from emo_export.files.manifest import (
    BESIDE,
    NAME,
    PRUNED,
    FileEntry,
    Manifest,
    is_sealed,
)
from emo_export.files.parts import OnBytes, Span, covering, differing, hashing

ABSENT, SIZE, CONTENT, UNLISTED = "absent", "size", "content", "unlisted"
LINK, SPECIAL, UNREADABLE = "link", "special", "unreadable"
WHOLE = "whole"
"""The kind of a span that is a file without parts."""
AT_ONCE = 64 << 20
"""Bytes that one thread checks before it takes others."""


@dataclass(frozen=True)
class Place:
    """Where in a file bytes differ: its header, a tensor, or the padding after one."""

    kind: str
    name: str


@dataclass(frozen=True)
class Problem:
    """A file that is not as the manifest says.

    `path` is relative to the folder; `what` is absent, size, content (its SHA-256 differs),
    unlisted, link (a symbolic one), special (no file at all) or unreadable. `bytes` and `expected`
    are told of a size, `places` of a content where the manifest knows parts.
    """

    path: str
    what: str
    bytes: int | None = None
    expected: int | None = None
    places: tuple[Place, ...] = ()


@dataclass(frozen=True)
class Shared:
    """A file with names outside the folder, `names` of them: who writes to those changes it."""

    path: str
    names: int


@dataclass(frozen=True)
class Verified:
    """What was found, of how many files and bytes. `is_old`: of a version that knew no parts."""

    problems: tuple[Problem, ...]
    shared: tuple[Shared, ...] = ()
    files: int = 0
    bytes: int = 0
    is_old: bool = False


class _Task(NamedTuple):
    """Spans of one file, that one thread checks."""

    entry: FileEntry
    spans: tuple[Span, ...]


def verify(folder: Path, on_bytes: OnBytes = lambda nbytes: None) -> list[Problem]:
    """Compare every file of a folder with its manifest.json.

    Raises EmoExportError without a manifest that can be read.
    """
    Manifest.load(folder)  # says which folder was meant, where there is none
    return list(verify_path(folder, on_bytes=on_bytes).problems)


def verify_path(
    path: Path,
    on_start: Callable[[int], None] = lambda nbytes: None,
    on_bytes: OnBytes = lambda nbytes: None,
) -> Verified:
    """Compare a folder that export made, or what prune made, with its manifest.

    Of domains, every one. `on_start` hears how many bytes there are, `on_bytes`, from several
    threads, of those that were read. Raises EmoExportError without a manifest that can be read.
    """
    manifests = manifests_of(path)
    read = {place: Manifest.read(place, folder) for place, folder in manifests.items()}
    for place, manifest in read.items():
        if path.is_file() and path.name not in {entry.path for entry in manifest.files}:
            raise EmoExportError(f"{place}: names no file {path.name}; was it renamed?")
    total = sum(entry.bytes for manifest in read.values() for entry in manifest.files)
    on_start(total)
    top = path if path.is_dir() else path.parent
    problems: list[Problem] = []
    for place, manifest in read.items():
        folder = manifests[place]
        prefix = "" if folder == top else f"{folder.relative_to(top).as_posix()}/"
        found = [] if is_sealed(place) or manifest.version == 1 else [Problem(place.name, CONTENT)]
        found += _differing(folder, manifest.files, on_bytes)
        problems += [replace(one, path=prefix + one.path) for one in found]
    known = {
        (folder / entry.path).relative_to(top).as_posix()
        for place, folder in manifests.items()
        for entry in read[place].files
    }
    known |= {place.relative_to(top).as_posix() for place in manifests}
    if is_domains(path):
        known.add(DOMAINS)
        if (path / DOMAINS).read_bytes() != domains_text(read_domains(path)).encode():
            problems.append(Problem(DOMAINS, CONTENT))
    if path.is_dir():
        problems += [one for one in _unlisted(top) if one.path not in known]
    return Verified(
        tuple(problems),
        tuple(_shared(top, known, path.is_dir())),
        len(known),
        total,
        any(manifest.version == 1 for manifest in read.values()),
    )


def manifests_of(path: Path) -> dict[Path, Path]:
    """The manifests that speak of a path, each with the folder of its files."""
    if path.is_file():
        beside = path.with_name(path.name + BESIDE)
        if beside.is_file():
            return {beside: path.parent}
        above = path.absolute().parent
        hint = f"; try {above}" if (above / NAME).is_file() else ""
        raise EmoExportError(f"{path}: there is no {beside.name} beside it{hint}")
    if not (path / NAME).is_file():
        if is_domains(path):
            names = read_domains(path)
            return {path / name / NAME: path / name for name in names}
        if (path / PRUNED).is_file():
            return {path / PRUNED: path}
    Manifest.load(path)  # says what the path is, where there is no manifest
    return {path / NAME: path}


def _differing(folder: Path, entries: Sequence[FileEntry], on_bytes: OnBytes) -> Iterator[Problem]:
    """Files that are not as they should be; contents are compared by several threads."""
    whole = []
    for entry in entries:
        problem = _outside(folder / entry.path, entry)
        if problem is None:
            whole.append(entry)
        else:
            on_bytes(entry.bytes)
            yield problem
    with hashing(on_bytes) as (workers, told):

        def check(task: _Task) -> Sequence[Span] | None:
            return _compare(folder, task, told)

        tasks = [task for entry in whole for task in _tasks(entry)]
        found = list(zip(tasks, workers.map(check, tasks), strict=True))
    for entry in whole:
        spans = [each for task, each in found if task.entry is entry]
        if any(each is None for each in spans):
            yield Problem(entry.path, UNREADABLE)
        elif wrong := [span for each in spans for span in each or ()]:
            places = tuple(Place(s.kind, s.name) for s in wrong if s.kind != WHOLE)
            yield Problem(entry.path, CONTENT, places=places)


def _outside(path: Path, entry: FileEntry) -> Problem | None:
    """What is wrong with a file before it is opened: a pipe would never answer."""
    try:
        found = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return Problem(entry.path, ABSENT)
    if stat.S_ISLNK(found.st_mode):
        return Problem(entry.path, LINK)
    if not stat.S_ISREG(found.st_mode):
        return Problem(entry.path, SPECIAL)
    if found.st_size != entry.bytes:
        return Problem(entry.path, SIZE, found.st_size, entry.bytes)
    return None


def _tasks(entry: FileEntry) -> Iterator[_Task]:
    """A file as pieces of work; one without parts is one."""
    if not entry.parts:
        yield _Task(entry, (Span(WHOLE, "", 0, entry.bytes),))
        return
    spans: list[Span] = []
    size = 0
    for span in covering([part.span for part in entry.parts], entry.bytes):
        spans.append(span)
        size += span.bytes
        if size >= AT_ONCE:
            yield _Task(entry, tuple(spans))
            spans, size = [], 0
    if spans:
        yield _Task(entry, tuple(spans))


def _compare(folder: Path, task: _Task, on_bytes: OnBytes) -> Sequence[Span] | None:
    """Spans whose bytes differ; None where they can't be read."""
    entry = task.entry
    expected: Mapping[Span, str] = {part.span: part.sha256 for part in entry.parts}
    if not entry.parts:
        expected = {task.spans[0]: entry.sha256}
    try:
        return differing(folder / entry.path, task.spans, expected, on_bytes)
    except OSError:
        return None


def _unlisted(top: Path) -> Iterator[Problem]:
    """Everything in a folder that is no folder, as if no manifest named it."""
    for at, folders, files in os.walk(top):
        links = [name for name in folders if (Path(at) / name).is_symlink()]
        for name in sorted((*files, *links)):
            yield Problem((Path(at) / name).relative_to(top).as_posix(), UNLISTED)


def _shared(top: Path, known: Set[str], is_whole: bool) -> Iterator[Shared]:
    """Files with more names than the folder has for them, or the domains that it is one of."""
    above = top.absolute().parent
    among = above if is_domains(above) else top
    names: dict[tuple[int, int], int] = {}
    for at, _, files in os.walk(among) if is_whole else ():
        for name in files:
            found = (Path(at) / name).lstat()
            key = found.st_dev, found.st_ino
            names[key] = names.get(key, 0) + 1
    for path in sorted(known):
        if not (top / path).is_file():
            continue
        found = (top / path).lstat()
        extra = found.st_nlink - names.get((found.st_dev, found.st_ino), 1)
        if extra > 0:
            yield Shared(path, extra)
