"""What was asked of a variant, beside its folder: by it the next run knows what is done.

`NAME.json` is written after the folder `NAME` is in place, so a kill between the two makes the
variant anew; it never passes for done.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from emo_export.base.disk import write_whole
from emo_export.base.json_file import read_json
from emo_export.errors import EmoExportError
from emo_export.exporting.folder import tool_versions
from emo_export.files.manifest import NAME as MANIFEST
from emo_export.files.manifest import Manifest, digest
from emo_export.model.checkpoint import Checkpoint
from emo_export.model.hub import SMALL_FILES
from emo_export.parity.outcome import Outcome
from emo_export.sweep.variants import Variant
from emo_export.text.places import find_texts

END = 1 << 20  # bytes of each end of a weight file that tell it from another of its size

Asked = Mapping[str, Any]
"""Plain values: what decides what is made. Equal ones make the same."""


class Inputs:
    """Digests of the files that variants are made of, each read once."""

    def __init__(self) -> None:
        self._texts: dict[Path, str] = {}
        self._checkpoints: dict[Path, dict[str, str]] = {}

    def asked(self, variant: Variant) -> Asked:
        """What is asked, with digests in place of the files. Raises EmoExportError."""
        options = variant.options
        plain: dict[str, Any] = asdict(options)
        for name in ("calibration", "heldout"):
            plain[name] = [self._text(file) for file in find_texts(plain[name]).files]
        plain["selection"] = str(options.selection)
        found = {
            "versions": tool_versions(),
            "checkpoint": self._checkpoint(variant.checkpoint),
            "variant": asdict(variant.label),
            "judged on": dict(variant.domains),
            **plain,
        }
        asked: Asked = json.loads(json.dumps(found))  # tuples are lists once it is read again
        return asked

    def _text(self, file: Path) -> list[str]:
        if file not in self._texts:
            self._texts[file] = digest(file)
        return [file.name, self._texts[file]]

    def _checkpoint(self, folder: Path) -> dict[str, str]:
        """Small files whole; of weights the size and both ends, where training leaves its mark."""
        if folder not in self._checkpoints:
            small = [file for pattern in SMALL_FILES for file in sorted(folder.glob(pattern))]
            found = {file.relative_to(folder).as_posix(): digest(file) for file in small}
            weights = Checkpoint.open(folder).files
            self._checkpoints[folder] = found | {file.name: _ends(file) for file in weights}
        return self._checkpoints[folder]


def _ends(file: Path) -> str:
    size = file.stat().st_size
    found = hashlib.sha256(str(size).encode())
    with file.open("rb") as handle:
        found.update(handle.read(END))
        handle.seek(max(0, size - END))
        found.update(handle.read(END))
    return found.hexdigest()


def differing(one: Asked, other: Asked) -> list[str]:
    """The names of what is not the same."""
    return sorted(name for name in {*one, *other} if one.get(name) != other.get(name))


@dataclass(frozen=True)
class Record:
    """What was asked, the SHA-256 of the manifest that came of it (None: failed), and the facts."""

    asked: Asked
    manifest: str | None
    outcome: Outcome

    def save(self, out: Path) -> None:
        """Write it beside the folder. Raises EmoExportError."""
        content = {
            "asked": self.asked,
            "manifest": self.manifest,
            "outcome": self.outcome.as_dict(),
        }
        text = json.dumps(content, indent=2, allow_nan=False) + "\n"
        write_whole(_place(out, self.outcome.label.name), text.encode())

    @classmethod
    def load(cls, out: Path, name: str) -> Record | None:
        """What a run left; None where there is nothing that can be used."""
        path = _place(out, name)
        if not path.exists():
            return None
        try:
            raw = read_json(path)
            asked, manifest = raw["asked"], raw["manifest"]
            return cls(asked, manifest, Outcome.from_dict(raw["outcome"], str(path)))
        except (EmoExportError, KeyError):
            return None

    def is_done(self, out: Path) -> bool:
        """Whether the folder is there, as this record's run left it: each file with its size."""
        folder = out / self.outcome.label.name
        if self.manifest is None or not (folder / MANIFEST).is_file():
            return False
        return digest(folder / MANIFEST) == self.manifest and _whole(folder)


def _whole(folder: Path) -> bool:
    try:
        files: Sequence[Any] = Manifest.load(folder).files
    except EmoExportError:
        return False
    return all(
        (folder / file.path).is_file() and (folder / file.path).stat().st_size == file.bytes
        for file in files
    )


def _place(out: Path, name: str) -> Path:
    return out / f"{name}.json"
