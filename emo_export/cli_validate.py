"""The work of `validate`: which targets, against which reference, and what it prints."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
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
    show_tables,
)
from emo_export.disk import check_writable
from emo_export.errors import EmoExportError, MissingDependencyError
from emo_export.junit import write_junit
from emo_export.manifest import NAME as MANIFEST
from emo_export.manifest import verify
from emo_export.outcome import Outcome

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
    junit: Path | None = None,
) -> None:
    """Validate an exported folder, some of its targets, or one artifact.

    Whatever the verdict, it is printed, and written to `junit`, before the error that goes with it
    is raised: ParityError, EmoExportError for a target that can't be read, MissingDependencyError.
    """
    if junit is not None:
        check_writable(junit)
    outcome = judge_here(path, only, reference, threads, device, say)
    try:
        if junit is not None:
            from emo_export.runtimes.machine import machine_facts

            write_junit(junit, outcome.device_reports(machine_facts()), path.resolve().name)
    finally:  # a disk that is full by now takes away the file, not the verdict
        if as_json:
            click.echo(json.dumps(outcome.as_dict(), indent=2))
        elif outcome.reports:
            show_tables(list(outcome.reports.values()), out)
    try:
        outcome.check()
    except MissingDependencyError as error:
        if not outcome.reports:
            raise
        ready = next(iter(outcome.reports))
        raise MissingDependencyError(f"{error} (or choose with --target {ready})") from error


def judge_here(
    path: Path,
    only: Sequence[str],
    reference: str | None,
    threads: int | None,
    device: str,
    on_stage: Callable[[str], None],
) -> Outcome:
    """Judge the targets that a path means with this machine's engines, one after the other.

    A target that can't be judged does not keep the others from it. Raises EmoExportError when
    there is nothing to compare with.
    """
    from emo_export.parity import Golden

    folder, targets = chosen_targets(path, only)
    stored = Golden.load(folder / "golden.npz") if (folder / "golden.npz").is_file() else None
    unjudged: dict[str, EmoExportError] = {
        spec: MissingDependencyError(text) for spec in targets if (text := missing_engine(spec))
    }
    ready = {spec: entry for spec, entry in targets.items() if spec not in unjudged}
    alone: dict[str, str] = {}
    if reference is not None and ready:
        golden, alone = _fresh_golden(reference, folder, ready, stored, device)
    elif stored is not None:
        golden = stored
    elif ready:
        raise EmoExportError(
            f"{path}: there is no golden.npz in {folder}; name the original with "
            "--reference CHECKPOINT"
        )
    reports = {}
    for spec, entry in ready.items():
        try:
            (reports[spec],) = validate_all(folder, {spec: entry}, golden, on_stage, threads, alone)
        except EmoExportError as error:
            unjudged[spec] = error
    commands = _commands(path, targets, reference, threads, device)
    return Outcome(commands, reports, unjudged, _damage(folder, ready))


def _commands(
    path: Path, targets: Iterable[str], reference: str | None, threads: int | None, device: str
) -> Mapping[str, str]:
    """How to repeat each target alone."""
    options = [] if reference is None else ["--reference", reference, "--torch-device", device]
    options += [] if threads is None else ["--threads", str(threads)]
    several = (path / MANIFEST).is_file()
    return {
        spec: shlex.join(
            [
                "emo-export",
                "validate",
                str(path),
                *(["--target", spec] if several else []),
                *options,
            ]
        )
        for spec in targets
    }


def _damage(
    folder: Path, targets: Mapping[str, Mapping[str, Any]]
) -> Mapping[str, tuple[str, ...]]:
    """Which files of each target are not the ones that export wrote.

    Token ids that happen not to use an expert can't show that it was damaged; digests can.
    """
    if not targets or not (folder / MANIFEST).is_file():
        return {}
    problems = verify(folder)
    found = {}
    for spec, entry in targets.items():
        judged = (str(folder / str(entry["path"])), str(folder / "golden.npz"))
        starts = tuple(f"{path}{end}" for path in judged for end in (":", "/"))
        if mine := tuple(text for text in problems if text.startswith(starts)):
            found[spec] = mine
    return found


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
