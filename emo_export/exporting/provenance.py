"""What a manifest says of where a product came from: inputs, options, versions, command, date."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from datetime import UTC, datetime
from enum import Enum
from fractions import Fraction
from pathlib import Path
from typing import Any

from emo_export.errors import EmoExportError
from emo_export.exporting.folder import tool_versions
from emo_export.files.manifest import InputEntry, Origin, digest
from emo_export.model.checkpoint import Checkpoint
from emo_export.model.hub import SMALL_FILES
from emo_export.model.product import Product
from emo_export.model.reads import Reads
from emo_export.spec import Spec

EPOCH = "SOURCE_DATE_EPOCH"
NO_MATTER = ("overwrite", "resume")


@dataclass(frozen=True)
class Provenance:
    """Of one job. `inputs` are files that were digested before the work, `reads` hears of others.

    `options` are JSON; `command` is what a user typed (None: it was no command).
    """

    inputs: tuple[InputEntry, ...]
    reads: Reads
    options: Mapping[str, Any]
    command: str | None
    date: str | None

    @classmethod
    def of_checkpoint(
        cls, checkpoint: Checkpoint, options: object, command: str | None
    ) -> Provenance:
        """Of a job that is to read the checkpoint once: its small files are digested now.

        Raises EmoExportError for a SOURCE_DATE_EPOCH that is no number of seconds.
        """
        folder = checkpoint.path
        paths = [path for pattern in SMALL_FILES for path in sorted(folder.glob(pattern))]
        return cls(_digested(folder, paths), Reads(), _told(options), command, _date())

    @classmethod
    def of_files(
        cls, folder: Path, files: Sequence[Path], options: object, command: str | None
    ) -> Provenance:
        """Of a job on files of a folder, which are digested now. Raises as `of_checkpoint` does."""
        return cls(_digested(folder, files), Reads(), _told(options), command, _date())

    def origin(self, product: Product, facts: Mapping[str, Any]) -> Origin:
        """What the manifest of a product says; `facts` join the options in the recipe."""
        source = product.source
        return Origin(
            {
                "kind": "checkpoint" if isinstance(source, Checkpoint) else "package",
                "name": source.path.name,
                "pruning": product.pruning,
                "kept": None if product.is_whole else product.all_kept,
                "scales": product.all_scales if product.scales else None,
            },
            tool_versions(),
            (*self.inputs, *self._weights(source.files if isinstance(source, Checkpoint) else ())),
            {"options": self.options, **facts},
            self.command,
            self.date,
        )

    def _weights(self, files: Sequence[Path]) -> list[InputEntry]:
        return [
            InputEntry(
                file.name,
                file.stat().st_size,
                header_sha256=_header_digest(file),
                tensors=dict(sorted(self.reads.of(file.name).items())),
            )
            for file in files
        ]


def _told(options: object) -> dict[str, Any]:
    """Options as the recipe has them, without those that change no byte."""
    return {name: value for name, value in plain(options).items() if name not in NO_MATTER}


def _digested(folder: Path, paths: Sequence[Path]) -> tuple[InputEntry, ...]:
    return tuple(
        InputEntry(path.relative_to(folder).as_posix(), path.stat().st_size, digest(path))
        for path in paths
    )


def _header_digest(file: Path) -> str:
    """SHA-256 of a safetensors header and the eight bytes of its length in front."""
    with file.open("rb") as handle:
        prefix = handle.read(8)
        return hashlib.sha256(prefix + handle.read(int.from_bytes(prefix, "little"))).hexdigest()


def _date() -> str | None:
    """The time that SOURCE_DATE_EPOCH says, as 2026-12-01T05:48:46Z.

    Without it there is none, so that the same export is the same bytes at another time.
    Source: https://reproducible-builds.org/specs/source-date-epoch/
    """
    given = os.environ.get(EPOCH)
    if given is None:
        return None
    try:
        if not given.isascii() or not given.isdecimal():
            raise ValueError
        return datetime.fromtimestamp(int(given), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (ValueError, OverflowError, OSError) as error:
        raise EmoExportError(
            f"{EPOCH} is {given!r:.40}, expected seconds since 1970, as $(date +%s) gives them"
        ) from error


def plain(value: object) -> Any:
    """Options as JSON; of a path its name alone: a manifest tells nobody where a folder lay.

    Raises TypeError for a kind of value that options don't have.
    """
    if value is None or (
        isinstance(value, bool | int | float | str) and not isinstance(value, Enum)
    ):
        return value
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Path):
        return value.name
    if isinstance(value, Spec | Fraction):
        return str(value)
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {str(plain(key)): plain(each) for key, each in value.items()}
    if isinstance(value, tuple | list):
        return [plain(each) for each in value]
    raise TypeError(f"an option is {value!r:.80}")
