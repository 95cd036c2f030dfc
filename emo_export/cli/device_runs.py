"""`validate --device`: from what the user names to devices and their reports."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emo_export.errors import EmoExportError, ParityError
from emo_export.runtimes.devices.device import DeviceReport, judge_target
from emo_export.runtimes.devices.memory.of_device import MemoryVerdict, try_targets
from emo_export.runtimes.devices.options import ADB, HERE, SSH, DeviceOptions, kind_of
from emo_export.runtimes.devices.profiles import profile_named
from emo_export.runtimes.devices.watched import WatchedDevice, emulated_device, this_machine

if TYPE_CHECKING:
    from emo_export.runtimes.devices.device import Device

NO_VERDICT = MemoryVerdict({})
Targets = Mapping[str, Mapping[str, Any]]
Say = Callable[[str], None]


@dataclass
class DeviceRuns:
    """A report for each target on each device; `errors` says why one has none to judge by."""

    reports: list[DeviceReport] = field(default_factory=list)
    errors: dict[tuple[str, str], EmoExportError] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Every target ran on every device, within every limit."""
        return all(report.passed for report in self.reports)

    def add_error(self, device: str, kind: str, target: str, error: EmoExportError) -> None:
        """A target that a device did not come to judge."""
        self.errors[device, target] = error
        told = str(error).removeprefix(f"{device}: ")  # beside which it is shown
        self.reports.append(DeviceReport(device, kind, target, None, (told,), {}, None, ""))

    def add_speed(self, device: str, target: str, speed: Mapping[str, Any]) -> None:
        """Speed of a target that was judged."""
        self._change(device, target, lambda report: replace(report, speed=speed))

    def add_failure(self, device: str, target: str, error: EmoExportError) -> None:
        """A judged target whose speed could not be measured: asked for, so it is no pass."""
        for report in self.reports:
            if (report.device, report.target) == (device, target) and report.passed:
                self.errors[device, target] = error  # else failed parity counts

        def add(report: DeviceReport) -> DeviceReport:
            return replace(report, failures=(*report.failures, str(error)))

        self._change(device, target, add)

    def _change(
        self, device: str, target: str, change: Callable[[DeviceReport], DeviceReport]
    ) -> None:
        self.reports = [
            change(report) if (report.device, report.target) == (device, target) else report
            for report in self.reports
        ]

    def part(self, target: str) -> DeviceRuns:
        """What became of one target."""
        reports = [report for report in self.reports if report.target == target]
        errors = {key: error for key, error in self.errors.items() if key[1] == target}
        return DeviceRuns(reports, errors)

    def check(self) -> None:
        """Raise the error whose exit code the runs have: the least one, parity being 1."""
        told = list(dict.fromkeys(str(error) for error in self.errors.values()))
        failed = [
            f"{report.target} on {report.device}"
            for report in self.reports
            if not report.passed and (report.device, report.target) not in self.errors
        ]
        if failed:
            raise ParityError("\n".join([f"failed: {', '.join(failed)}", *told]))
        if self.errors:
            least = min(self.errors.values(), key=lambda error: error.exit_code)
            raise type(least)("\n".join(told))


def joined_runs(parts: Sequence[DeviceRuns]) -> DeviceRuns:
    """The runs of several targets as one."""
    reports = [report for part in parts for report in part.reports]
    return DeviceRuns(reports, {key: e for part in parts for key, e in part.errors.items()})


def judge_devices(
    folder: Path,
    targets: Targets,
    damage: Mapping[str, Sequence[str]],
    options: DeviceOptions,
    on_stage: Say,
) -> DeviceRuns:
    """Judge the targets of a package on every device; one that fails keeps no other from it.

    `damage` (by target) tells which of its files are not those that export wrote; such a target
    fails without being run.
    """
    runs = DeviceRuns()
    whole = {spec: entry for spec, entry in targets.items() if spec not in damage}
    for name in options.names or (HERE,):
        for spec, texts in damage.items():
            runs.add_error(name, kind_of(name), spec, ParityError("\n".join(texts)))
        if whole:
            _judge_on(name, folder, whole, options, runs, on_stage)
    return runs


def _judge_on(
    name: str,
    folder: Path,
    targets: Targets,
    options: DeviceOptions,
    runs: DeviceRuns,
    on_stage: Say,
) -> None:
    """All targets on one device; an error of the device itself is one of each that has none."""
    try:
        with opened(name, options, on_stage) as device:
            on_stage(f"{device.name}: {', '.join(targets)}")
            _judge_device(device, folder, targets, options, runs, on_stage)
    except EmoExportError as error:
        done = {report.target for report in runs.reports if report.device == name}
        for spec in targets:
            if spec not in done:
                runs.add_error(name, kind_of(name), spec, error)


@contextmanager
def opened(name: str, options: DeviceOptions, on_stage: Say) -> Iterator[Device]:
    """The device of a name, set up when it is an emulated one; closed at the end, whatever comes.

    Raises EmoExportError when it can't be reached or used.
    """
    device = _open(name, options, on_stage)
    try:
        yield device
    finally:
        device.close()


def _open(name: str, options: DeviceOptions, on_stage: Say) -> Device:
    from emo_export.runtimes.devices.emulated.setup import emulation

    kind = kind_of(name)
    if kind == HERE:
        return this_machine()
    if kind == SSH:
        from emo_export.runtimes.devices.ssh.remote import SshDevice

        return SshDevice(name, on_stage, setup=options.setup)
    set_up = partial(
        emulation, onnxruntime=options.onnxruntime, rootfs=options.rootfs, on_stage=on_stage
    )
    if kind == ADB:
        from emo_export.runtimes.devices.adb.android import open_adb

        return open_adb(name, set_up, on_stage)
    return emulated_device(profile_named(name), set_up())


def _judge_device(
    device: Device,
    folder: Path,
    targets: Targets,
    options: DeviceOptions,
    runs: DeviceRuns,
    on_stage: Say,
) -> None:
    place = device.place(folder, targets)
    asked = options.request(device.kind)
    memory = {}
    if isinstance(device, WatchedDevice) and (options.ram or options.context):
        on_stage(f"{device.name}: measuring memory of {', '.join(targets)}")
        memory = try_targets(device, folder, targets, options)
    for spec in targets:
        verdict = memory.get(spec, NO_VERDICT)
        if verdict.error is not None:
            runs.add_error(device.name, device.kind, spec, verdict.error)
            continue
        if verdict.failures:
            runs.reports.append(_not_judged(device, spec, verdict))
            continue
        on_stage(f"{device.name}: validating {spec}")
        try:
            first = spec == next((name for name in targets if name.startswith("onnx")), "")
            report = judge_target(device, place, asked._replace(spec=spec, kernels=first))
        except EmoExportError as error:
            runs.add_error(device.name, device.kind, spec, error)
            continue
        # What a user's run takes says more than what judging takes.
        runs.reports.append(replace(report, memory=verdict.facts or report.memory))
    if options.bench:
        _measure_speed(device, place, targets, options, runs, on_stage)


def _measure_speed(
    device: Device,
    place: str,
    targets: Targets,
    options: DeviceOptions,
    runs: DeviceRuns,
    on_stage: Say,
) -> None:
    """Add speeds to the reports of a device, where one can be told (not under emulation)."""
    from emo_export.runtimes.devices.ssh.remote import SshDevice

    if not isinstance(device, SshDevice):
        return
    ready = {
        report.target: targets[report.target]
        for report in runs.reports
        if report.device == device.name and report.report is not None
    }
    settings = {} if options.threads is None else {"threads": options.threads}
    for spec, entry in ready.items():
        on_stage(f"{device.name}: measuring the speed of {spec}")
        try:
            found = device.speed(spec, f"{place}/{entry['path']}", settings)
            runs.add_speed(device.name, spec, found)
        except EmoExportError as error:
            runs.add_failure(device.name, spec, error)


def _not_judged(device: Device, spec: str, verdict: MemoryVerdict) -> DeviceReport:
    failures = (*verdict.failures, "so parity was not judged")
    return DeviceReport(
        device.name, device.kind, spec, None, failures, device.facts(), verdict.facts, ""
    )
