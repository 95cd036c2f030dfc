"""Which exported file or folder a path means, and which target it is (light: `run` uses it)."""

from __future__ import annotations

from pathlib import Path

from emo_export.errors import EmoExportError
from emo_export.json_file import read_json
from emo_export.manifest import NAME as MANIFEST
from emo_export.manifest import Manifest

FILE_TYPES = {0: "f32", 1: "f16", 2: "q4_0", 7: "q8_0", 32: "bf16"}
"""`general.file_type` of the types written here (gguf-py LlamaFileType)."""


def choose_artifact(path: Path, target: str | None) -> Path:
    """The .gguf file or ONNX folder to run: the path itself, or a target of an exported folder.

    Raises EmoExportError when the path is neither, or has no such target.
    """
    if path.is_dir() and (path / MANIFEST).is_file():
        targets = Manifest.load(path).targets
        spec = target or next(iter(targets), "")
        if spec not in targets:
            known = ", ".join(targets)
            raise EmoExportError(f"{path}: has no target {spec}; it has {known}")
        return path / str(targets[spec]["path"])
    if target is not None:
        raise EmoExportError(f"{path}: is a single model, so --target {target} says nothing")
    if path.is_file() or (path / "model.onnx").is_file():
        return path
    raise EmoExportError(
        f"{path}: is no .gguf file, no folder with model.onnx and no folder that export made"
    )


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
    if kind not in FILE_TYPES:
        raise EmoExportError(f"{path}: file type {kind!r} is not one that export writes")
    return f"gguf:{FILE_TYPES[kind]}"


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files of a folder."""
    if path.is_file():
        return path.stat().st_size
    return sum(inner.stat().st_size for inner in path.rglob("*") if inner.is_file())
