"""The work of `verify`: progress, what it prints, and its verdict."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TransferSpeedColumn

from emo_export.cli.output import put, say, stderr
from emo_export.errors import EmoExportError, ParityError
from emo_export.files.manifest import Manifest
from emo_export.files.verifying import Problem, manifests_of, verify_path
from emo_export.files.verifying_source import verify_source
from emo_export.report.sentences import problem, shared

if TYPE_CHECKING:
    from emo_export.parity.result import Result

GOLDEN = "golden.npz"


def run_verify(
    path: Path,
    deep: bool,
    timeout: float | None,
    source: Path | None,
    out: Console,
    in_json: bool,
) -> None:
    """Verify, and print what was found.

    Raises ParityError where something differs, and what a replay calls for.
    """
    if deep:
        _check_golden(path)
    with _bar() as (on_start, on_bytes):
        found = verify_path(path, on_start, on_bytes)
    problems = found.problems
    told: dict[str, Any] = {
        "path": str(path),
        "files": found.files,
        "bytes": found.bytes,
        "problems": [asdict(one) for one in problems],
        "shared": [asdict(one) for one in found.shared],
    }
    wrong = [f"{path}/{problem(one)}" for one in problems]
    for one in found.shared:
        say(f"note: {path}/{shared(one)}")
    if found.is_old:
        say(f"note: {path}: made by an earlier version, whose manifest knows no tensors")
    if source is not None:
        others = _of_source(path, source)
        told["source_problems"] = [asdict(one) for one in others]
        wrong += [f"{source}/{problem(one)}" for one in others]
    results = _replayed(path, problems, timeout) if deep else []
    if in_json:
        told |= {"passed": not wrong and all(one.passed for one in results)}
        if deep:
            told["targets"] = [one.as_dict() for one in results]
        click.echo(json.dumps(told, indent=2))
    elif not wrong:
        what = f"{found.files} files, {found.bytes / 1e6:.1f} MB"
        put(f"{path}: every byte is as it was written ({what})")
        if source is not None:
            put(f"{path}: was made of {source}")
    if results and not in_json:
        from emo_export.report.text import show

        show(results, out)
    if wrong:
        raise ParityError("\n".join(wrong))
    if results:
        from emo_export.report.sentences import check

        check(results)


def _check_golden(path: Path) -> None:
    for place, folder in manifests_of(path).items():
        manifest = Manifest.read(place, folder)
        if not manifest.targets or GOLDEN not in {entry.path for entry in manifest.files}:
            raise EmoExportError(
                f"{folder}: has no {GOLDEN}, which --deep replays; emo-export validate --reference "
                "CHECKPOINT computes it anew"
            )


def _of_source(path: Path, source: Path) -> list[Problem]:
    found: list[Problem] = []
    with _bar() as (on_start, on_bytes):
        read = [Manifest.read(*each).origin.inputs for each in manifests_of(path).items()]
        on_start(sum(one.bytes for inputs in read for one in inputs))
        for inputs in read:
            found += verify_source(inputs, source, on_bytes)
    return list(dict.fromkeys(found))


def _replayed(path: Path, problems: Sequence[Problem], timeout: float | None) -> list[Result]:
    """Each target judged by its engine in a process of its own; a damaged one is not opened."""
    from emo_export.parity.result import HERE
    from emo_export.runtimes.devices.judging import judge_devices
    from emo_export.runtimes.devices.options import DeviceOptions
    from emo_export.validating import damage_among

    asked = DeviceOptions((HERE,), timeout=timeout)
    results = []
    for folder in manifests_of(path).values():
        name = "" if folder == path else f"{folder.relative_to(path).as_posix()}/"
        inside = [
            replace(one, path=one.path.removeprefix(name))
            for one in problems
            if one.path.startswith(name)
        ]
        targets = Manifest.load(folder).targets
        damage = damage_among(inside, targets)
        found = judge_devices(folder, targets, damage, asked, say)
        results += [replace(one, target=f"{name}{one.target}") for one in found]
    return results


@contextmanager
def _bar() -> Iterator[tuple[Callable[[int], None], Callable[[int], None]]]:
    """What hears of all bytes and of those that were read, on stderr where that is a terminal."""
    console = stderr()
    columns = BarColumn(bar_width=30), DownloadColumn(), TransferSpeedColumn()
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=None)

        def on_start(nbytes: int) -> None:
            progress.update(task, total=nbytes)

        def on_bytes(nbytes: int) -> None:
            progress.update(task, advance=nbytes)

        yield on_start, on_bytes
