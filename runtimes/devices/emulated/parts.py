"""The parts of an emulated device, each made once under a name that changes with its pins."""

from __future__ import annotations

import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from emo_export.errors import EmoExportError, MissingDependencyError
from emo_export.runtimes.devices.emulated import debian as device_debian
from emo_export.runtimes.devices.emulated import llama as device_llama
from emo_export.runtimes.devices.emulated import wheels as device_wheels
from emo_export.runtimes.devices.emulated.debian import Fetched
from emo_export.runtimes.devices.emulated.fetch import Progress
from emo_export.runtimes.devices.emulated.pins import Package, Pins, Wheel, digest_of
from emo_export.runtimes.devices.emulated.place import (
    making,
    scratch,
    unfinished,
    versions_of,
    write_versions,
)

HOSTS = {"x86_64": "amd64", "AMD64": "amd64", "aarch64": "arm64", "arm64": "arm64"}
QEMU, ROOT = "qemu-aarch64", "root"  # in the parts of qemu and root


@dataclass(frozen=True)
class Parts:
    """Which parts a setup consists of; those that are not ours are None.

    Fields: `python` the version of the root's Python, such as "3.13"; `onnxruntime` a version
    instead of the pinned one.
    """

    pins: Pins
    qemu: Package | None
    root: tuple[Package, ...] | None
    python: str
    onnxruntime: str | None

    @property
    def names(self) -> Mapping[str, str]:
        """Part -> the name of its folder."""
        other = f"-onnxruntime-{self.onnxruntime}" if self.onnxruntime else ""
        names = {
            "site": f"site-{self.python}-{digest_of(self.wheels)}{other}",
            "llama": f"llama-{digest_of([self.pins.llama])}",
        }
        if self.qemu:
            names["qemu"] = f"qemu-{digest_of([self.qemu])}"
        if self.root:
            names["root"] = f"root-{digest_of(self.root)}"
        return names

    @property
    def wheels(self) -> tuple[Wheel, ...]:
        """The pinned wheels; without onnxruntime when another version is asked for."""
        wheels = self.pins.wheels[self.python]
        return tuple(one for one in wheels if not (self.onnxruntime and one.name == "onnxruntime"))


def host_qemu(pins: Pins) -> Package:
    """The qemu that runs on this machine. Raises MissingDependencyError where none is pinned."""
    arch = HOSTS.get(platform.machine(), "")
    if arch not in pins.qemu:
        raise MissingDependencyError(
            f"qemu is pinned for {' and '.join(pins.qemu)}, and this machine is "
            f"{platform.machine()}; give a root with --rootfs, and put qemu-aarch64 10 or newer on "
            "PATH"
        )
    return pins.qemu[arch]


def refuse_versions(pins: Pins, python: str, onnxruntime: str | None) -> None:
    """Raise EmoExportError for a Python without pinned wheels, or what is no version."""
    if python not in pins.wheels:
        raise EmoExportError(
            f"the root's Python is {python}; arm64 wheels are pinned for {', '.join(pins.wheels)}. "
            "Give another root with --rootfs"
        )
    if onnxruntime is not None and not re.fullmatch(r"\d+(\.\d+)+[a-z0-9.]*", onnxruntime):
        raise EmoExportError(f"--onnxruntime {onnxruntime}: not a version; expected as in 1.21.0")


def missing_parts(parts: Parts, folder: Path) -> dict[str, int]:
    """Part -> about how many bytes are fetched for it, for those that are not there."""
    sizes = {
        "qemu": parts.qemu.nbytes if parts.qemu else 0,
        "root": sum(package.nbytes for package in parts.root or ()),
        "site": sum(wheel.nbytes for wheel in parts.pins.wheels[parts.python]),
        "llama": parts.pins.llama.nbytes,
    }
    return {
        part: sizes[part]
        for part, name in parts.names.items()
        if versions_of(folder / name) is None
    }


def make_parts(parts: Parts, missing: Sequence[str], folder: Path, progress: Progress) -> None:
    """Make the parts named. The folder's lock must be held."""
    if "site" in missing:  # asked now, not after a minute of downloads
        device_wheels.refuse_without_installer()
    if "qemu" in missing or "root" in missing:
        _make_debian(parts, missing, folder, progress)
    if "site" in missing:
        _make_site(parts, folder, progress)
    if "llama" in missing:
        _make_llama(parts, folder, progress)


def _make_debian(parts: Parts, missing: Sequence[str], folder: Path, progress: Progress) -> None:
    """What comes from Debian, by one reading of its index."""
    qemu = [parts.qemu] if parts.qemu and "qemu" in missing else []
    root = list(parts.root or ()) if "root" in missing else []
    with unfinished(folder) as work:
        fetched = device_debian.fetch([*qemu, *root], parts.pins.suite, work, progress)
        if qemu:
            with making(folder, parts.names["qemu"]) as part:
                device_debian.unpack_qemu(fetched[0], part / QEMU)
                write_versions(part, _described(fetched[:1]))
        if root:
            with making(folder, parts.names["root"]) as part:
                packages = fetched[len(qemu) :]
                device_debian.unpack_root(packages, part / ROOT, scratch(part))
                write_versions(part, _described(packages))


def _described(fetched: Sequence[Fetched]) -> dict[str, str]:
    return {one.package.name: one.described() for one in fetched}


def _make_site(parts: Parts, folder: Path, progress: Progress) -> None:
    with making(folder, parts.names["site"]) as site:
        device_wheels.install(parts.wheels, parts.python, site, progress)
        if parts.onnxruntime:
            wish = ("onnxruntime", parts.onnxruntime)
            device_wheels.install_unpinned(*wish, parts.python, site, progress)
        write_versions(site, device_wheels.installed(site))


def _make_llama(parts: Parts, folder: Path, progress: Progress) -> None:
    pin = parts.pins.llama
    with making(folder, parts.names["llama"]) as part:
        file = device_llama.fetch(pin, scratch(part), progress)
        version = device_llama.unpack(file, part)
        write_versions(part, {"llama.cpp": f"{version} (npm {pin.name} {pin.version})"})
