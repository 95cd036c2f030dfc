"""The work of `validate`: which targets, against which reference, and what it prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from emo_export.artifact import chosen_targets
from emo_export.cli_importance import importance_of_folder, unrepeatable
from emo_export.cli_make import scheme_of
from emo_export.cli_targets import missing_engine, need, validate_all
from emo_export.cli_work import (
    CONVERT,
    heldout_files,
    open_checkpoint,
    prepare_torch,
    progress_steps,
    say,
    show,
)
from emo_export.errors import EmoExportError, MissingDependencyError, ParityError
from emo_export.manifest import NAME as MANIFEST
from emo_export.manifest import verify

if TYPE_CHECKING:
    from emo_export.parity import Golden


def run_validate(
    path: Path,
    only: Sequence[str],
    reference: str | None,
    threads: int | None,
    device: str,
    as_json: bool,
    out: Console,
) -> None:
    """Validate an exported folder, some of its targets, or one artifact.

    Raises MissingDependencyError after the targets that can run when another's engine is missing.
    """
    from emo_export.parity import Golden

    folder, targets = chosen_targets(path, only)
    stored = Golden.load(folder / "golden.npz") if (folder / "golden.npz").is_file() else None
    missing = {spec: text for spec in targets if (text := missing_engine(spec))}
    ready = {spec: entry for spec, entry in targets.items() if spec not in missing}
    alone: dict[str, str] = {}
    if reference is not None and ready:
        golden, alone = _fresh_golden(reference, folder, targets, stored, device)
    elif stored is not None:
        golden = stored
    elif ready:
        raise EmoExportError(
            f"{path}: there is no golden.npz in {folder}; name the original with "
            "--reference CHECKPOINT"
        )
    if ready:
        show(validate_all(folder, ready, golden, say, threads, alone), as_json, out)
        _check_digests(folder, ready)
    if missing:
        told = "; ".join(f"{spec}: {text}" for spec, text in missing.items())
        advice = f" (or choose with --target {next(iter(ready))})" if ready else ""
        raise MissingDependencyError(f"not validated: {told}{advice}")


def _check_digests(folder: Path, targets: Mapping[str, Mapping[str, Any]]) -> None:
    """Token ids that happen not to use an expert can't show that it was damaged; digests can.

    Raises ParityError when a judged file is not the one that export wrote.
    """
    if not (folder / MANIFEST).is_file():
        return
    paths = [folder / str(entry["path"]) for entry in targets.values()] + [folder / "golden.npz"]
    problems = [p for p in verify(folder) if any(p.startswith(str(path)) for path in paths)]
    if problems:
        raise ParityError("\n".join(problems))


def _fresh_golden(
    source: str,
    folder: Path,
    targets: Mapping[str, Mapping[str, Any]],
    stored: Golden | None,
    device: str,
) -> tuple[Golden, dict[str, str]]:
    """The reference computed now, on the token ids of the stored golden where there is one.

    With it the targets whose quantisation can't be repeated, and why.
    """
    need(CONVERT, "convert", "--reference")
    from emo_export.export import make_golden
    from emo_export.golden import Probes, choose_probes

    checkpoint = open_checkpoint(source)
    prepare_torch(device, checkpoint)
    if stored is None:
        probes = choose_probes(checkpoint, heldout_files((), checkpoint), 4096)
    else:
        probes = Probes.of(stored)
    alone = unrepeatable(folder, targets, checkpoint)
    schemes = {
        spec: scheme_of(spec, checkpoint, entry)
        for spec, entry in targets.items()
        if spec not in alone
    }
    importance = importance_of_folder(folder, targets, checkpoint)
    with progress_steps() as steps:
        golden = make_golden(checkpoint, schemes, probes, steps, device, importance=importance)
    return golden, alone
