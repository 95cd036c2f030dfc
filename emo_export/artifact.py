"""Which exported file or folder a path means, and which target it is (light: `run` uses it)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from emo_export.errors import EmoExportError
from emo_export.json_file import read_json
from emo_export.manifest import NAME as MANIFEST
from emo_export.manifest import Manifest

FILE_TYPES = {0: "f32", 1: "f16", 2: "q4_0", 7: "q8_0", 32: "bf16"}
"""`general.file_type` of the types written here (gguf-py LlamaFileType)."""


def chosen_targets(
    path: Path, only: Sequence[str] = ()
) -> tuple[Path, Mapping[str, Mapping[str, Any]]]:
    """The folder and the targets (spec -> entry with `path`) that a path means.

    An exported folder means all its targets, or those of `only`; a .gguf file or ONNX folder means
    itself, with its entry in the manifest beside it where there is one. Raises EmoExportError when
    the path is neither, or has no such target.
    """
    if not path.exists():
        raise EmoExportError(f"{path}: there is no such file or folder")
    if path.is_dir() and (path / MANIFEST).is_file():
        targets = Manifest.load(path).targets
        for spec in only:
            if spec not in targets:
                raise EmoExportError(f"{path}: has no target {spec}; it has {', '.join(targets)}")
        return path, {spec: targets[spec] for spec in only or targets}
    if only:
        raise EmoExportError(f"{path}: is a single model; --target chooses from an exported folder")
    if not path.is_file() and not (path / "model.onnx").is_file():
        raise EmoExportError(
            f"{path}: is no .gguf file, no folder with model.onnx and no folder that export made"
        )
    folder = path.absolute().parent
    if (folder / MANIFEST).is_file():
        for spec, entry in Manifest.load(folder).targets.items():
            if (folder / str(entry["path"])).resolve() == path.resolve():
                return folder, {spec: entry}
    return folder, {spec_of(path): {"path": path.name}}


def spec_of(path: Path) -> str:
    """The target of a single .gguf file or ONNX folder that export made.

    Raises EmoExportError when the path is no such thing or of a type unknown here.
    """
    if path.is_dir():
        needs = path / "emo_export.json"
        if not needs.is_file():
            raise EmoExportError(f"{path}: has no emo_export.json; was it made by export?")
        return f"onnx:{read_json(needs).get('type')}"
    from emo_export.gguf_header import read_gguf

    keys = read_gguf(path).keys
    if keys.get("general.architecture") != "deepseek":
        raise EmoExportError(
            f"{path}: architecture {keys.get('general.architecture')!r}; export writes 'deepseek'"
        )
    kind = keys.get("general.file_type")
    if not isinstance(kind, int) or kind not in FILE_TYPES:
        raise EmoExportError(f"{path}: file type {kind!r} is not one that export writes")
    return f"gguf:{FILE_TYPES[kind]}"


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files of a folder."""
    if path.is_file():
        return path.stat().st_size
    return sum(inner.stat().st_size for inner in path.rglob("*") if inner.is_file())
