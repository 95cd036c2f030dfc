"""The manifest of an exported folder, written last."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from emo_export.base.disk import unfinished, write_whole
from emo_export.base.json_file import read_json
from emo_export.base.plain_file import open_plain
from emo_export.errors import EmoExportError
from emo_export.files.domains import is_domains, read_domains
from emo_export.files.parts import HEADER, TENSOR, Part, Span, digest_parts, hashing, tensor_spans
from emo_export.files.target_entry import TargetEntry
from emo_export.spec import Spec

NAME = "manifest.json"
PRUNED, BESIDE = f"pruned.{NAME}", f".{NAME}"
"""In a folder that prune made, and what a .gguf file's name is followed by in its own."""
_DAMAGE = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, RuntimeError)
VERSION, READ = 2, (1, 2)
SEAL, UNSEALED = "sha256", "0" * 64
_SEALED = re.compile(rb'"sha256": "([0-9a-f]{64})"\n}\n\Z')


@dataclass(frozen=True)
class FileEntry:
    """One file of the folder: path relative to it, bytes, SHA-256, and its parts if it has any."""

    path: str
    bytes: int
    sha256: str
    parts: tuple[Part, ...] = ()


@dataclass(frozen=True)
class InputEntry:
    """One file that the export read: path relative to the source's folder, and bytes.

    `sha256` of a file that was read whole. Of a file of weights, `header_sha256` is that of its
    header with the length in front, and `tensors` the SHA-256 of each tensor that was read.
    """

    path: str
    bytes: int
    sha256: str | None = None
    header_sha256: str | None = None
    tensors: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Origin:
    """What was made of what, with what, by what: all that the manifest says beside the files.

    `recipe` has the options and the digests of the texts; `date` is that of SOURCE_DATE_EPOCH.
    """

    source: Mapping[str, Any] = field(default_factory=dict)
    tools: Mapping[str, str] = field(default_factory=dict)
    inputs: tuple[InputEntry, ...] = ()
    recipe: Mapping[str, Any] = field(default_factory=dict)
    command: str | None = None
    date: str | None = None


@dataclass(frozen=True)
class Manifest:
    """What was made from what. `targets` is by name, as `gguf:q4_0`."""

    origin: Origin
    targets: Mapping[str, TargetEntry]
    files: tuple[FileEntry, ...]
    version: int = VERSION

    @property
    def source(self) -> Mapping[str, Any]:
        """Where the weights came from."""
        return self.origin.source

    @property
    def tools(self) -> Mapping[str, str]:
        """Versions of what it was made with."""
        return self.origin.tools

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
        manifest = cls.read(path, folder)
        if not manifest.targets:
            raise EmoExportError(f"{path}: is not a manifest of emo-export (it names no target)")
        return manifest

    @classmethod
    def read(cls, path: Path, folder: Path) -> Manifest:
        """Read a manifest of files in `folder`. Raises EmoExportError."""
        try:
            raw = read_json(path)
            version = raw["version"]
            if type(version) is not int or version not in READ:
                raise EmoExportError(
                    f"{path}: is of version {version!r:.40}, this tool reads "
                    f"{' and '.join(map(str, READ))}; upgrade emo-export, or export again"
                )
            files = tuple(map(_file_entry, raw["files"]))
            if len({entry.path for entry in files}) != len(files):
                raise ValueError("a file is named twice")
            entries = [
                TargetEntry.from_dict(Spec.parse(name), entry)
                for name, entry in raw["targets"].items()
            ]
            targets = {str(entry.spec): entry for entry in entries}
            manifest = cls(_origin(raw, version), targets, files, version)
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


def _origin(raw: Mapping[str, Any], version: int) -> Origin:
    """Of a manifest that was read. Raises ValueError or KeyError for what is not of our form."""
    source, tools = _object(raw["source"], "source"), _object(raw["tools"], "tools")
    if version == 1:
        return Origin(source, tools)
    for name in ("command", "date"):
        if not isinstance(raw[name], str | None):
            raise ValueError(f"{name} is {raw[name]!r:.60}")
    inputs = tuple(
        InputEntry(
            _below(_text(one["path"], "an input")),
            _count(one["bytes"], one["path"]),
            one.get("sha256"),
            one.get("header_sha256"),
            _object(one.get("tensors", {}), "tensors"),
        )
        for one in raw["inputs"]
    )
    return Origin(
        source, tools, inputs, _object(raw["recipe"], "recipe"), raw["command"], raw["date"]
    )


def _below(path: str) -> str:
    """A path of an input, which is looked for in whatever folder the user names."""
    if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
        raise ValueError(f"an input at {path!r:.80} lies outside its folder")
    return path


def _file_entry(raw: Mapping[str, Any]) -> FileEntry:
    path = _text(raw["path"], "a file")
    size = _count(raw["bytes"], path)
    parts, end = [], 0
    for kind, name, offset, nbytes, sha256 in raw.get("parts", ()):
        span = Span(kind, _text(name, path), _count(offset, path), _count(nbytes, path))
        if kind not in (HEADER, TENSOR) or span.offset < end or span.offset + nbytes > size:
            raise ValueError(f"{path} can't have a {kind!r:.40} {name!r:.80} at byte {offset}")
        end = span.offset + nbytes
        parts.append(Part(span, _text(sha256, path)))
    return FileEntry(path, size, _text(raw["sha256"], path), tuple(parts))


def _text(raw: Any, what: str) -> str:
    if not isinstance(raw, str):
        raise ValueError(f"{what} has {raw!r:.60} where text belongs")
    return raw


def _count(raw: Any, what: str) -> int:
    if type(raw) is not int or raw < 0:
        raise ValueError(f"{what} has {raw!r:.60} where a number of bytes belongs")
    return raw


def _object(raw: Any, what: str) -> dict[str, Any]:
    if not isinstance(raw, dict):
        raise ValueError(f"{what} is {raw!r:.60}")
    return raw


def write_manifest(folder: Path, origin: Origin, targets: Mapping[str, TargetEntry]) -> Manifest:
    """Digest every file of the folder and write manifest.json beside them."""
    return write_for(folder / NAME, folder, files_in(folder, NAME), origin, targets)


def files_in(folder: Path, name: str) -> list[Path]:
    """Every file of a folder but its manifest of that name, and what a killed run left of one."""
    own = (folder / name, unfinished(folder / name))
    return sorted(p for p in folder.rglob("*") if p.is_file() and p not in own)


def write_for(
    path: Path,
    folder: Path,
    files: Sequence[Path],
    origin: Origin,
    targets: Mapping[str, TargetEntry],
) -> Manifest:
    """Digest files of a folder, and the tensors in them, and write a manifest of them at `path`."""
    spans = tensor_spans(folder, files)

    with hashing(lambda nbytes: None) as (workers, on_bytes):

        def entry_of(file: Path) -> FileEntry:
            relative, size = file.relative_to(folder).as_posix(), file.stat().st_size
            if file not in spans:
                return FileEntry(relative, size, digest(file))
            return FileEntry(relative, size, *digest_parts(file, spans[file], on_bytes))

        entries = tuple(workers.map(entry_of, files))
    manifest = Manifest(origin, targets, entries)
    write_whole(path, _sealed(manifest).encode())
    return manifest


def _sealed(manifest: Manifest) -> str:
    """The text of a manifest, whose last value is the SHA-256 of the text with zeros there."""
    origin = manifest.origin
    content = {
        "version": manifest.version,
        "source": origin.source,
        "command": origin.command,
        "date": origin.date,
        "recipe": origin.recipe,
        "tools": origin.tools,
        "inputs": [
            {name: value for name, value in asdict(one).items() if value not in (None, {})}
            for one in origin.inputs
        ],
        "targets": {name: entry.as_dict() for name, entry in manifest.targets.items()},
        "files": [_as_dict(file) for file in manifest.files],
        SEAL: UNSEALED,
    }
    text = json.dumps(content, indent=2) + "\n"
    # A part is a list of scalars: on one line it is easier to read, and a third as long.
    text = re.sub(r"\[\n\s+(\"(?:header|tensor)\",[^\[\]]*?)\s+\]", _on_one_line, text)
    seal = hashlib.sha256(text.encode("utf-8")).hexdigest()
    return seal.join(text.rsplit(UNSEALED, 1))


def is_sealed(path: Path) -> bool:
    """Whether a manifest is as it was written: its text has the SHA-256 that it ends with."""
    raw = path.read_bytes()
    found = _SEALED.search(raw)
    if found is None:
        return False
    text = raw[: found.start(1)] + UNSEALED.encode() + raw[found.end(1) :]
    return hashlib.sha256(text).hexdigest().encode() == found[1]


def _on_one_line(found: re.Match[str]) -> str:
    return "[" + re.sub(r"\n\s+", " ", found[1]) + "]"  # no string has a line break in JSON


def _as_dict(file: FileEntry) -> dict[str, Any]:
    parts = [[*asdict(part.span).values(), part.sha256] for part in file.parts]
    told = {"path": file.path, "bytes": file.bytes, "sha256": file.sha256}
    return told | ({"parts": parts} if parts else {})


def digest(path: Path) -> str:
    """SHA-256 of a plain file, hexadecimal. Raises EmoExportError as `open_plain`."""
    with open_plain(path) as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


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
