"""The work of `validate`: what it prints and writes."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console

from emo_export.base.child_process import TIMEOUT
from emo_export.base.disk import check_writable
from emo_export.base.install import CONVERT, need
from emo_export.cli.progress import progress, suggest
from emo_export.cli.work import open_checkpoint, progress_steps
from emo_export.errors import EmoExportError, MissingDependencyError
from emo_export.files.manifest import NAME as MANIFEST
from emo_export.files.manifest import Manifest
from emo_export.judging.apart import judge_apart
from emo_export.parity.result import Result, as_json
from emo_export.report.html import page as report_html
from emo_export.report.junit import write_junit
from emo_export.report.sentences import check
from emo_export.report.text import show
from emo_export.runtimes.devices.options import DeviceOptions
from emo_export.runtimes.package import chosen_targets
from emo_export.validating import GOLDEN, Targets, Unreadable, validate_here, validate_there

if TYPE_CHECKING:
    from emo_export.exporting.steps import Steps
    from emo_export.parity.golden import Golden


@dataclass(frozen=True)
class ValidateOptions:
    """What the command line was given beside the path, as its help describes it."""

    only: tuple[str, ...] = ()
    reference: str | None = None
    threads: int | None = None
    torch_device: str = "cpu"
    html: Path | None = None
    junit: Path | None = None
    as_json: bool = False
    devices: DeviceOptions = field(default_factory=DeviceOptions)

    def check(self) -> None:
        """Refuse, before any work, what would have no effect or could not be written."""
        self.devices.check()
        if self.devices.asked and self.reference is not None:
            raise EmoExportError(
                "--reference computes the reference here; devices take it from golden.npz: leave "
                "one of --reference and --device or --ram out"
            )
        if self.junit is not None:
            check_writable(self.junit)
        if self.html is not None:
            report_html.check_writable(self.html)


def run_validate(path: Path, options: ValidateOptions, out: Console) -> None:
    """Validate an exported folder, some of its targets, or one artifact, here or on devices.

    Whatever the verdict, it is printed and written to files before the error that goes with it is
    raised: ParityError, EmoExportError for a target that can't be read, MissingDependencyError,
    NotEnoughTextError.
    """
    options.check()
    results = _results(path, options)
    try:
        _write_reports(path, options, results)
    finally:  # a disk that is full by now takes away the file, not the verdict
        if options.as_json:
            click.echo(json.dumps(as_json(results), indent=2))
        else:
            show(results, out)
    try:
        check(results)
    except MissingDependencyError as error:
        ready = next((result.target for result in results if result.rows), "")
        if not ready:
            raise
        raise MissingDependencyError(f"{error} (or choose with --target {ready})") from error
    if not options.as_json:
        suggest(["run", str(path), "Once upon a time"], ["bench", str(path)])


def _results(path: Path, options: ValidateOptions) -> list[Result]:
    if options.devices.asked:
        return validate_there(path, options.only, options.devices, progress)
    source, device, threads = options.reference, options.torch_device, options.threads
    repeat = [] if source is None else ["--reference", source, "--torch-device", device]
    repeat += [] if threads is None else ["--threads", str(threads)]
    kv_cache = options.devices.kv_cache
    repeat += [] if kv_cache is None else ["--kv-cache", kv_cache]
    judging = partial(judge_apart, timeout=options.devices.timeout or TIMEOUT)
    if source is None:
        return validate_here(path, options.only, threads, None, repeat, progress, kv_cache, judging)
    with progress_steps() as steps:
        reference = partial(_reference, source, device, steps)
        return validate_here(
            path, options.only, threads, reference, repeat, progress, kv_cache, judging
        )


def _reference(
    source: str, device: str, steps: Steps, folder: Path, targets: Targets, stored: Golden | None
) -> tuple[Golden, Unreadable]:
    """The reference of a checkpoint, computed when something is ready to be judged by it."""
    need(CONVERT, "convert", "--reference")
    from emo_export.jobs.golden import fresh_golden

    # An export that chose experts tells in its manifest which of the checkpoint's it has.
    manifest = Manifest.load(folder) if (folder / MANIFEST).is_file() else None
    kept, scales = (manifest.kept, manifest.scales) if manifest else (None, None)
    checkpoint = open_checkpoint(source)
    return fresh_golden(checkpoint, device, steps, folder, targets, stored, kept, scales)


def _write_reports(path: Path, options: ValidateOptions, results: Sequence[Result]) -> None:
    """The files that were asked for."""
    if options.junit is not None:
        write_junit(options.junit, results, path.resolve().name)
        progress(f"wrote {options.junit}")
    if options.html is not None:
        from emo_export.parity.golden import Golden

        folder, _ = chosen_targets(path)
        golden = None
        with contextlib.suppress(EmoExportError):  # of a damaged one, which the results tell of
            golden = Golden.load(folder / GOLDEN) if (folder / GOLDEN).is_file() else None
        manifest = Manifest.load(folder) if (folder / MANIFEST).is_file() else None
        report_html.write_html(
            options.html, results, package=path, golden=golden, manifest=manifest
        )
        progress(f"wrote {options.html}")
