"""The work of `verify`: progress, what it prints, and its verdict."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from rich.progress import BarColumn, DownloadColumn, Progress, TransferSpeedColumn

from emo_export.cli.output import put, say, stderr
from emo_export.errors import ParityError
from emo_export.files.verifying import verify_path
from emo_export.report.sentences import problem, shared


def run_verify(path: Path, in_json: bool) -> None:
    """Verify, print what was found. Raises ParityError where something differs."""
    with _progress() as bar:
        task = bar.add_task("", total=None)
        found = verify_path(
            path,
            lambda nbytes: bar.update(task, total=nbytes),
            lambda nbytes: bar.update(task, advance=nbytes),
        )
    told: dict[str, Any] = {
        "path": str(path),
        "passed": not found.problems,
        "files": found.files,
        "bytes": found.bytes,
        "problems": [asdict(one) for one in found.problems],
        "shared": [asdict(one) for one in found.shared],
    }
    wrong = [f"{path}/{problem(one)}" for one in found.problems]
    for one in found.shared:
        say(f"note: {path}/{shared(one)}")
    if found.is_old:
        say(f"note: {path}: made by an earlier version, whose manifest knows no tensors")
    if in_json:
        click.echo(json.dumps(told, indent=2))
    elif not wrong:
        what = f"{found.files} files, {found.bytes / 1e6:.1f} MB"
        put(f"{path}: every byte is as it was written ({what})")
    if wrong:
        raise ParityError("\n".join(wrong))


@contextmanager
def _progress() -> Iterator[Progress]:
    console = stderr()
    columns = BarColumn(bar_width=30), DownloadColumn(), TransferSpeedColumn()
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        yield progress
