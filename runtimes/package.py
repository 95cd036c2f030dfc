"""Which exported file or folder a path means, and which target it is (light: `run` uses it)."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from emo_export.base.near import did_you_mean
from emo_export.errors import EmoExportError
from emo_export.files.domains import is_domains
from emo_export.files.manifest import NAME as MANIFEST
from emo_export.files.manifest import Manifest
from emo_export.files.target_entry import TargetEntry
from emo_export.runtimes.families import family_at
from emo_export.spec import GRAPHS, ONNX


def chosen_targets(path: Path, only: Sequence[str] = ()) -> tuple[Path, Mapping[str, TargetEntry]]:
    """The folder and the targets (by name) that a path means.

    An exported folder means all its targets, or those of `only`; a .gguf file or ONNX folder means
    itself, with its entry in the manifest beside it where there is one. Raises EmoExportError when
    the path is neither, or has no such target.
    """
    if not path.exists():
        raise EmoExportError(f"{path}: there is no such file or folder")
    if (path / MANIFEST).is_file() or is_domains(path):
        targets = Manifest.load(path).targets
        only = [spec.removesuffix(f"@{GRAPHS[ONNX][0]}") for spec in only]
        for spec in only:
            if spec not in targets:
                raise EmoExportError(
                    f"{path}: has no target {spec}; it has {', '.join(targets)}"
                    f"{did_you_mean(spec, targets)}"
                )
        return path, {spec: targets[spec] for spec in only or targets}
    if only:
        raise EmoExportError(f"{path}: is a single model; --target chooses from an exported folder")
    if (path / "config.json").is_file() and not (path / "model.onnx").is_file():
        raise EmoExportError(
            f"{path}: is a checkpoint; export it first: "
            f"emo-export export {shlex.quote(str(path))} -o out --to gguf:q4_0"
        )
    family = family_at(path)
    folder = path.absolute().parent
    if (folder / MANIFEST).is_file():
        for spec, entry in Manifest.load(folder).targets.items():
            if (folder / entry.path).resolve() == path.resolve():
                return folder, {spec: entry}
    alone = family.entry_of(path)
    return folder, {str(alone.spec): alone}
