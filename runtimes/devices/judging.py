"""All targets of a package on every device that was named, one `Result` each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from emo_export.base.counted import counted
from emo_export.errors import EmoExportError
from emo_export.files.target_entry import TargetEntry
from emo_export.files.verifying import Problem
from emo_export.parity.result import HERE, Refusal, Result, refused
from emo_export.runtimes.devices.device import judge_target
from emo_export.runtimes.devices.memory.of_device import MemoryVerdict, try_targets
from emo_export.runtimes.devices.options import ADB, SSH, DeviceOptions, kind_of
from emo_export.runtimes.devices.profiles import profile_named
from emo_export.runtimes.devices.watched import WatchedDevice, emulated_device, this_machine
from emo_export.spec import Spec

if TYPE_CHECKING:
    from emo_export.runtimes.devices.device import Device

NO_VERDICT = MemoryVerdict({})
Targets = Mapping[str, TargetEntry]
Say = Callable[[str], None]


def judge_devices(
    folder: Path,
    targets: Targets,
    damage: Mapping[str, Sequence[Problem]],
    options: DeviceOptions,
    on_stage: Say,
) -> list[Result]:
    """Judge the targets of a package on every device; one that fails keeps no other from it.

    `damage` (by target) tells which of its files are not those that export wrote; such a target
    fails without being run.
    """
    results = []
    whole = {spec: entry for spec, entry in targets.items() if spec not in damage}
    for name in options.names or (HERE,):
        kind = kind_of(name)
        results += [
            Result(target=spec, device=name, kind=kind, damage=tuple(problems))
            for spec, problems in damage.items()
        ]
        if whole:
            results += _judge_on(name, folder, whole, options, on_stage)
    return results


def _judge_on(
    name: str, folder: Path, targets: Targets, options: DeviceOptions, on_stage: Say
) -> list[Result]:
    """All targets on one device; an error of the device itself is one of each that has none."""
    found: dict[str, Result] = {}
    try:
        with opened(name, options, on_stage) as device:
            on_stage(f"{device.name}: {', '.join(targets)}")
            _judge_device(device, folder, targets, options, found, on_stage)
    except EmoExportError as error:
        rest = [spec for spec in targets if spec not in found]
        found |= {spec: refused(spec, error, name, kind_of(name)) for spec in rest}
    return list(found.values())


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
    found: dict[str, Result],
    on_stage: Say,
) -> None:
    """Add the result of each target to `found` as it comes."""
    place = device.place(folder, targets)
    asked = options.request(device.kind)
    memory: Mapping[Spec, MemoryVerdict] = {}
    if isinstance(device, WatchedDevice) and (options.ram or options.context):
        on_stage(f"{device.name}: measuring memory of {', '.join(targets)}")
        memory = try_targets(device, folder, targets, options)
    # Kernels are the engine's, so one target of each family is asked for them.
    firsts: dict[str, str] = {}
    for spec, entry in targets.items():
        firsts.setdefault(entry.spec.family, spec)
    for spec, entry in targets.items():
        verdict = memory.get(entry.spec, NO_VERDICT)
        if verdict.error or verdict.crash or verdict.too_little:
            found[spec] = _not_run(device, spec, verdict)
            continue
        on_stage(f"{device.name}: validating {counted(spec, targets)}")
        try:
            request = asked._replace(kernels=spec in firsts.values())
            result = judge_target(device, place, entry.spec, request)
        except EmoExportError as error:
            found[spec] = refused(spec, error, device.name, device.kind)
            continue
        # What a user's run takes says more than what judging takes.
        found[spec] = replace(result, memory=verdict.facts or result.memory)
    if options.bench:
        _measure_speed(device, place, targets, options, found, on_stage)


def _not_run(device: Device, spec: str, verdict: MemoryVerdict) -> Result:
    if verdict.error:
        return refused(spec, verdict.error, device.name, device.kind)
    return Result(
        target=spec,
        device=device.name,
        kind=device.kind,
        crash=verdict.crash,
        too_little=verdict.too_little,
        machine=device.facts(),
        memory=verdict.facts,
    )


def _measure_speed(
    device: Device,
    place: str,
    targets: Targets,
    options: DeviceOptions,
    found: dict[str, Result],
    on_stage: Say,
) -> None:
    """Add speeds to the results of a device, where one can be told (not under emulation)."""
    from emo_export.runtimes.devices.ssh.remote import SshDevice

    if not isinstance(device, SshDevice):
        return
    asked = {"threads": options.threads, "kv-cache": options.kv_cache}
    settings = {name: value for name, value in asked.items() if value is not None}
    for spec, result in found.items():
        if not result.rows:
            continue
        on_stage(f"{device.name}: measuring the speed of {spec}")
        try:
            path = f"{place}/{targets[spec].path}"
            found[spec] = replace(result, speed=device.speed(spec, path, settings))
        except EmoExportError as error:  # it was asked for, so this is no pass
            found[spec] = replace(result, refusal=Refusal(str(error), error.exit_code))
