"""The manifest of an exported folder, written last."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from emo_export.base.disk import writing
from emo_export.errors import EmoExportError
from emo_export.files.domains import is_domains, read_domains
from emo_export.files.target_entry import TargetEntry
from emo_export.spec import Spec

NAME = "manifest.json"
_DAMAGE = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, RuntimeError)
VERSION = 1
ABSENT, SIZE, CONTENT, UNLISTED = "absent", "size", "content", "unlisted"


@dataclass(frozen=True)
class FileEntry:
    """One file of the folder: path relative to it, bytes, SHA-256."""

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Problem:
    """A file that is not as the manifest says.

    `path` is relative to the folder; `what` is absent, size, content (its SHA-256 differs) or
    unlisted; `bytes` and `expected` are told of a size.
    """

    path: str
    what: str
    bytes: int | None = None
    expected: int | None = None


@dataclass(frozen=True)
class Manifest:
    """What was made from what. `targets` is by name, as `gguf:q4_0`."""

    source: Mapping[str, Any]
    tools: Mapping[str, str]
    targets: Mapping[str, TargetEntry]
    files: tuple[FileEntry, ...]

    @property
    def kept(self) -> list[list[int]] | None:
        """The source's experts of each layer that the targets have; None: all.

        Raises EmoExportError for anything else than lists of numbers.
        """
        kept = self.source.get("kept")
        if kept is None:
            return None
        if not isinstance(kept, list) or not all(
            isinstance(row, list) and all(type(n) is int for n in row) for row in kept
        ):
            raise EmoExportError(f"{NAME}: source.kept is no list of experts for each layer")
        return kept

    @property
    def scales(self) -> dict[int, float]:
        """By layer, what its routed experts were multiplied by when experts were left out.

        Raises EmoExportError for anything else than a list of numbers.
        """
        scales = self.source.get("scales")
        if scales is None:
            return {}
        if not isinstance(scales, list) or not all(type(one) is float for one in scales):
            raise EmoExportError(f"{NAME}: source.scales is no list of a number for each layer")
        return dict(enumerate(scales))

    @classmethod
    def load(cls, folder: Path) -> Manifest:
        """Read manifest.json. Raises EmoExportError when the folder is not a whole export."""
        path = folder / NAME
        if not path.is_file():
            if is_domains(folder):
                names = read_domains(folder)
                raise EmoExportError(
                    f"{folder}: holds a package for each of the domains {', '.join(names)}; name "
                    f"one, as {folder / names[0]}"
                )
            above = folder.absolute().parent
            beside = (above / NAME).is_file()
            hint = f"try {above}" if beside else "is it a folder that export made?"
            raise EmoExportError(f"{folder}: has no {NAME}; {hint}")
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            if raw["version"] != VERSION:
                raise EmoExportError(
                    f"{path}: is of version {raw['version']}, this tool reads {VERSION}; "
                    "upgrade emo-export"
                )
            files = tuple(FileEntry(**entry) for entry in raw["files"])
            entries = [
                TargetEntry.from_dict(Spec.parse(name), entry)
                for name, entry in raw["targets"].items()
            ]
            targets = {str(entry.spec): entry for entry in entries}
            manifest = cls(raw["source"], raw["tools"], targets, files)
            if not targets:
                raise ValueError("it names no target")
            for name, target in targets.items():
                for place in target.paths:
                    _inside(folder, place, f"target {name}")
                if target.importance is not None:
                    _inside(folder, target.importance.file, f"the importance matrix of {name}")
            for entry in files:
                _inside(folder, entry.path, "a file")
        except _DAMAGE as error:
            raise EmoExportError(f"{path}: is not a manifest of emo-export ({error})") from error
        return manifest


def _inside(folder: Path, relative: str, what: str) -> None:
    if not (folder / relative).resolve().is_relative_to(folder.resolve()):
        raise EmoExportError(f"{folder / NAME}: {what} at {relative!r} lies outside the folder")


def write_manifest(
    folder: Path,
    source: Mapping[str, Any],
    tools: Mapping[str, str],
    targets: Mapping[str, TargetEntry],
) -> Manifest:
    """Digest every file of the folder and write manifest.json beside them."""
    paths = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != NAME)
    files = tuple(
        FileEntry(p.relative_to(folder).as_posix(), p.stat().st_size, digest(p)) for p in paths
    )
    manifest = Manifest(source, tools, targets, files)
    content = {
        "version": VERSION,
        "source": source,
        "tools": tools,
        "targets": {name: entry.as_dict() for name, entry in targets.items()},
        "files": [asdict(file) for file in files],
    }
    with writing(folder / NAME):
        (folder / NAME).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return manifest


def digest(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def verify(folder: Path, only: str | None = None) -> list[Problem]:
    """Compare every file of a folder with its manifest.

    With `only`, a path relative to the folder, that file alone. Raises EmoExportError without a
    manifest that can be read.
    """
    listed = {entry.path: entry for entry in Manifest.load(folder).files}
    found = (_problem(folder, entry) for entry in listed.values() if only in (None, entry.path))
    problems = [problem for problem in found if problem is not None]
    there = (p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    others = sorted(there) if only is None else [only]
    problems += [Problem(path, UNLISTED) for path in others if path not in {*listed, NAME}]
    return problems


def _problem(folder: Path, entry: FileEntry) -> Problem | None:
    path = folder / entry.path
    if not path.is_file():
        return Problem(entry.path, ABSENT)
    size = path.stat().st_size
    if size != entry.bytes:
        return Problem(entry.path, SIZE, size, entry.bytes)
    return None if digest(path) == entry.sha256 else Problem(entry.path, CONTENT)


def is_export(folder: Path) -> bool:
    """An empty folder, or one whose manifest.json or domains.json is of this tool."""
    if folder.is_symlink() or not folder.is_dir():
        return False
    if not any(folder.iterdir()):
        return True
    try:
        if is_domains(folder):
            return all(is_export(folder / name) for name in read_domains(folder))
        Manifest.load(folder)
    except EmoExportError:
        return False
    return True
