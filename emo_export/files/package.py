"""Which exported file or folder a path means, and which target it is (light: `run` uses it)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from emo_export.base.json_file import read_json
from emo_export.errors import EmoExportError
from emo_export.files.manifest import NAME as MANIFEST
from emo_export.files.manifest import Manifest
from emo_export.files.target_entry import TargetEntry
from emo_export.spec import GGUF, GRAPHS, ONNX, Spec

ARCHITECTURES = ("deepseek", "glm4moe")
"""llama.cpp's graphs that EMO is written for, in the order of preference."""

FILE_TYPES = {
    "f32": 0,
    "f16": 1,
    "bf16": 32,
    "q8_0": 7,
    "q6_k": 18,
    "q5_k_m": 17,
    "q5_k_s": 16,
    "q5_1": 9,
    "q5_0": 8,
    "q4_k_m": 15,
    "q4_k_s": 14,
    "q4_1": 3,
    "q4_0": 2,
    "iq4_nl": 25,
    "iq4_xs": 30,
    "mxfp4": 38,
    "q3_k_l": 13,
    "q3_k_m": 12,
    "q3_k_s": 11,
    "iq3_s": 26,
    "iq3_xxs": 23,
    "q2_k": 10,
    "iq2_s": 28,
    "iq2_xs": 20,
    "iq2_xxs": 19,
}
"""`general.file_type` of each GGUF target, best quality first (llama.h, enum llama_ftype)."""


def chosen_targets(path: Path, only: Sequence[str] = ()) -> tuple[Path, Mapping[str, TargetEntry]]:
    """The folder and the targets (by name) that a path means.

    An exported folder means all its targets, or those of `only`; a .gguf file or ONNX folder means
    itself, with its entry in the manifest beside it where there is one. Raises EmoExportError when
    the path is neither, or has no such target.
    """
    if not path.exists():
        raise EmoExportError(f"{path}: there is no such file or folder")
    if path.is_dir() and (path / MANIFEST).is_file():
        targets = Manifest.load(path).targets
        only = [spec.removesuffix(f"@{GRAPHS[ONNX][0]}") for spec in only]
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
            if (folder / entry.path).resolve() == path.resolve():
                return folder, {spec: entry}
    alone = TargetEntry(spec_of(path), path.name, _alone(path))
    return folder, {str(alone.spec): alone}


def _alone(path: Path) -> dict[str, str] | None:
    """What an ONNX folder away from its manifest says of itself: the types of its parts."""
    if not path.is_dir():
        return None
    needs = path / "emo_export.json"
    recipe = read_json(needs).get("recipe")
    if recipe is None:  # of an early export
        return None
    if not isinstance(recipe, dict) or not all(isinstance(v, str) for v in recipe.values()):
        raise EmoExportError(
            f"{needs}: recipe is {recipe!r}, expected a type for each part; was it changed? "
            "export the folder again"
        )
    return recipe


def spec_of(path: Path) -> Spec:
    """The target of a single .gguf file or ONNX folder that export made.

    Raises EmoExportError when the path is no such thing or of a type unknown here.
    """
    if path.is_dir():
        needs = path / "emo_export.json"
        if not needs.is_file():
            raise EmoExportError(f"{path}: has no emo_export.json; was it made by export?")
        data = read_json(needs)
        return Spec(ONNX, str(data.get("type")), str(data.get("graph", "")))
    from emo_export.files.gguf_header import read_gguf

    keys = read_gguf(path).keys
    if keys.get("general.type") == "imatrix":
        raise EmoExportError(f"{path}: is an importance matrix, not a model")
    if keys.get("general.architecture") not in ARCHITECTURES:
        raise EmoExportError(
            f"{path}: architecture {keys.get('general.architecture')!r}; export writes "
            f"{' or '.join(ARCHITECTURES)}"
        )
    kind = keys.get("general.file_type")
    for name, number in FILE_TYPES.items():
        if number == kind:
            return Spec(GGUF, name)
    raise EmoExportError(f"{path}: file type {kind!r} is not one that export writes")


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files of a folder."""
    if path.is_file():
        return path.stat().st_size
    return sum(inner.stat().st_size for inner in path.rglob("*") if inner.is_file())
