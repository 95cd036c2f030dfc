"""The work of `validate`: which targets, against which reference, and what it prints."""

from __future__ import annotations

import contextlib
import json
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

from emo_export.base.disk import check_writable
from emo_export.cli.device_runs import DeviceRuns, judge_devices
from emo_export.cli.make import weights_of
from emo_export.cli.targets import missing_engine, need, validate_all
from emo_export.cli.work import (
    CONVERT,
    heldout_files,
    open_checkpoint,
    prepare_torch,
    progress_steps,
    say,
    show_devices,
    show_tables,
)
from emo_export.errors import EmoExportError, MissingDependencyError
from emo_export.files.manifest import NAME as MANIFEST
from emo_export.files.manifest import Manifest, verify
from emo_export.files.package import chosen_targets
from emo_export.model.product import Product
from emo_export.parity.outcome import Outcome
from emo_export.report.html import page as report_html
from emo_export.report.junit import write_junit
from emo_export.runtimes.devices.options import DeviceOptions

if TYPE_CHECKING:
    from emo_export.parity.golden import Golden
    from emo_export.runtimes.devices.device import DeviceReport

GOLDEN = "golden.npz"


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
    raised: ParityError, EmoExportError for a target that can't be read, MissingDependencyError.
    """
    options.check()
    if options.devices.asked:
        _run_on_devices(path, options, out)
        return
    outcome = judge_here(
        path, options.only, options.reference, options.threads, options.torch_device, say
    )
    try:
        from emo_export.runtimes.devices.far.machine import machine_facts

        _write_reports(path, options, outcome.device_reports(machine_facts()))
    finally:  # a disk that is full by now takes away the file, not the verdict
        if options.as_json:
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


def _run_on_devices(path: Path, options: ValidateOptions, out: Console) -> None:
    runs = judge_there(path, options.only, options.devices, say)
    try:
        _write_reports(path, options, runs.reports)
    finally:
        if options.as_json:
            devices = [report.as_dict() for report in runs.reports]
            click.echo(json.dumps({"passed": runs.passed, "devices": devices}, indent=2))
        else:
            show_devices(runs.reports, out)
    runs.check()


def _write_reports(path: Path, options: ValidateOptions, reports: list[DeviceReport]) -> None:
    """The files that were asked for."""
    if options.junit is not None:
        write_junit(options.junit, reports, path.resolve().name)
    if options.html is not None:
        from emo_export.parity.golden import Golden

        folder, _ = chosen_targets(path)
        golden = None
        with contextlib.suppress(EmoExportError):  # of a damaged one, which the reports tell of
            golden = Golden.load(folder / GOLDEN) if (folder / GOLDEN).is_file() else None
        manifest = Manifest.load(folder) if (folder / MANIFEST).is_file() else None
        report_html.write_html(
            options.html, reports, package=path, golden=golden, manifest=manifest
        )


def judge_there(
    path: Path, only: Sequence[str], devices: DeviceOptions, on_stage: Callable[[str], None]
) -> DeviceRuns:
    """Judge the targets that a path means on devices, each as `validate --device` does.

    Raises EmoExportError for a path without a manifest and a reference.
    """
    folder, targets = chosen_targets(path, only)
    if not (folder / MANIFEST).is_file() or not (folder / GOLDEN).is_file():
        raise EmoExportError(
            f"{path}: a device needs a folder that export made, with {MANIFEST} and {GOLDEN}; "
            "export the checkpoint without --no-golden"
        )
    runs = judge_devices(folder, targets, _damage(folder, targets), devices, on_stage)
    runs.reports = [
        replace(
            report,
            repeat=_command(path, report.target, devices.arguments(report.device)),
        )
        for report in runs.reports
    ]
    return runs


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
    from emo_export.parity.golden import Golden

    folder, targets = chosen_targets(path, only)
    stored = Golden.load(folder / GOLDEN) if (folder / GOLDEN).is_file() else None
    unjudged: dict[str, EmoExportError] = {
        spec: MissingDependencyError(text) for spec in targets if (text := missing_engine(spec))
    }
    ready = {spec: entry for spec, entry in targets.items() if spec not in unjudged}
    if reference is not None and ready:
        golden = _fresh_golden(reference, folder, ready, stored, device)
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
            (reports[spec],) = validate_all(folder, {spec: entry}, golden, on_stage, threads)
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
    return {spec: _command(path, spec, options) for spec in targets}


def _command(path: Path, spec: str, options: Sequence[str]) -> str:
    """The command line that judges one target of a path."""
    several = (path / MANIFEST).is_file()
    target = ["--target", spec] if several else []
    return shlex.join(["emo-export", "validate", str(path), *target, *options])


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
        judged = (str(folder / str(entry["path"])), str(folder / GOLDEN))
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
) -> Golden:
    """The reference computed now, on the token ids of the stored golden where there is one."""
    need(CONVERT, "convert", "--reference")
    from emo_export.export import make_golden
    from emo_export.reference.probes import Probes, choose_probes

    product = Product.whole(open_checkpoint(source))
    prepare_torch(device, product.nbytes)
    if stored is None:
        probes = choose_probes(product, heldout_files((), product.path), 4096)
    else:
        probes = Probes.of(stored)
    artifacts = {
        spec: partial(weights_of, spec, folder / str(entry["path"]), product, entry)
        for spec, entry in targets.items()
    }
    with progress_steps() as steps:
        return make_golden(product, artifacts, probes, steps, device)
