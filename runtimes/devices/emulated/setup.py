"""Sets up what `--device pi4` and its like run on: qemu, an arm64 root, arm64 engines.

The parts lie in a cache folder (`device_place`), each under a name that changes with its pins, so
that nothing is ever changed in place: a part that is there is whole. `ready-….json` is written when
all parts were seen to work together; with it, a later call runs nothing and asks no network.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from emo_export.base.disk import check_space, writing
from emo_export.base.json_file import read_json
from emo_export.errors import EmoExportError, MissingDependencyError
from emo_export.runtimes.devices.emulated import llama as device_llama
from emo_export.runtimes.devices.emulated import parts as device_parts
from emo_export.runtimes.devices.emulated.emulation import Emulation
from emo_export.runtimes.devices.emulated.fetch import Progress, run
from emo_export.runtimes.devices.emulated.parts import Parts
from emo_export.runtimes.devices.emulated.pins import Pins, read_pins
from emo_export.runtimes.devices.emulated.place import locked, place, unfinished, versions_of
from emo_export.runtimes.devices.emulated.root import (
    Qemu,
    new_enough,
    python_of,
    qemu_on_path,
    qemu_version,
    refuse_qemu,
)

READY = "ready-"
PATHS = ("qemu", "root", "python", "site", "libllama")
UNPACKED = 4  # the parts take less than so many times what is fetched for them
TRIAL_CPU = "cortex-a76"  # old ONNX Runtimes, which may be asked for, crash on a Pi 4
TRIAL = """
import ctypes, json, platform, sys
import numpy, onnxruntime, tokenizers
ctypes.CDLL(sys.argv[1]).llama_backend_init
print(json.dumps({
    "python": platform.python_version(),
    "libc": " ".join(platform.libc_ver()),
    "numpy": numpy.__version__,
    "onnxruntime": onnxruntime.__version__,
    "tokenizers": tokenizers.__version__,
}))
"""


def emulation(
    *,
    onnxruntime: str | None = None,
    rootfs: Path | None = None,
    on_stage: Callable[[str], None],
) -> Emulation:
    """What emulated devices run on, set up first when it is not there.

    `onnxruntime` is a version instead of the pinned one, `rootfs` an arm64 root with Python;
    `on_stage` is told what goes on while something is set up.
    Raises MissingDependencyError for a program that this machine lacks, EmoExportError when
    something can't be fetched, is not what was pinned, or does not run.
    """
    return set_up(onnxruntime, rootfs, Progress(on_stage))


def set_up(onnxruntime: str | None, rootfs: Path | None, progress: Progress) -> Emulation:
    """As `emulation`, telling bytes too."""
    refuse_other_systems()
    rootfs = rootfs.resolve() if rootfs else None
    parts, qemu = _parts(read_pins(), onnxruntime, rootfs)
    folder = place()
    ready = folder / _ready_name(parts, qemu, rootfs)
    found = ready_emulation(ready)
    if found is not None:
        return found
    with locked(folder, progress.on_stage):
        found = ready_emulation(ready)  # another process may have been faster
        if found is None:
            _fetch(parts, folder, progress)
            found = _assembled(parts, qemu, rootfs, folder)
            versions = _versions(parts, qemu, rootfs, folder, _trial(found, folder, progress))
            found = replace(found, versions=versions)
            _record(found, ready)
        return found


def refuse_other_systems() -> None:
    """Raise MissingDependencyError where qemu can't run Linux programs."""
    if sys.platform != "linux":
        raise MissingDependencyError(
            f"qemu runs Linux programs on Linux alone, and this is {sys.platform}; use a Linux "
            "machine or container, or a real device with --device ssh://host"
        )


def existing() -> Emulation | None:
    """What the pinned setup runs on when it is there; nothing is done for it."""
    refuse_other_systems()
    parts, qemu = _parts(read_pins(), None, None)
    return ready_emulation(place() / _ready_name(parts, qemu, None))


def _parts(pins: Pins, onnxruntime: str | None, rootfs: Path | None) -> tuple[Parts, Qemu | None]:
    """What is needed, and the qemu of PATH if that is used: with a root that was given."""
    python = python_of(rootfs).version if rootfs else pins.python
    qemu = _qemu_of_path() if rootfs else None
    device_parts.refuse_versions(pins, python, onnxruntime)
    pinned = {wheel.name: wheel.version for wheel in pins.wheels[python]}
    other = None if onnxruntime == pinned["onnxruntime"] else onnxruntime
    own = None if qemu else device_parts.host_qemu(pins)
    return Parts(pins, own, None if rootfs else pins.root, python, other), qemu


def _qemu_of_path() -> Qemu | None:
    """The one of PATH, or None where the pinned one can be fetched instead.

    Raises MissingDependencyError, which names the version found, where there is no other.
    """
    found = qemu_on_path()
    if found is not None and new_enough(found):
        return found
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise refuse_qemu(found)
    return None


def _ready_name(parts: Parts, qemu: Qemu | None, rootfs: Path | None) -> str:
    """A name that changes with everything that the setup depends on."""
    facts = [*sorted(parts.names.values())]
    if rootfs is not None:
        programs = [python_of(rootfs).path, *([qemu.path] if qemu else [])]
        facts += [f"{path} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in programs]
    return f"{READY}{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12]}.json"


def ready_emulation(ready: Path) -> Emulation | None:
    """What a ready file tells, or None without one or when a part has gone since."""
    if not ready.is_file():
        return None
    try:
        content = read_json(ready)
    except EmoExportError:
        content = {}
    versions = content.get("versions")
    paths = [content.get(name) for name in PATHS]
    if not isinstance(versions, dict) or not all(isinstance(path, str) for path in paths):
        raise EmoExportError(f"{ready} is damaged; remove it and run `emo-export device setup`")
    qemu, root, python, site, libllama = (Path(content[name]) for name in PATHS)
    if not all(path.exists() for path in (qemu, root, python, site, libllama)):
        return None
    return Emulation(qemu, root, python, site, libllama, versions)


def _fetch(parts: Parts, folder: Path, progress: Progress) -> None:
    missing = device_parts.missing_parts(parts, folder)
    if not missing:
        return
    total = sum(missing.values())
    index = parts.pins.index_bytes if {"qemu", "root"} & missing.keys() else 0
    progress.on_stage(
        f"emulated devices: about {(total + index) / 1e6:.0f} MB to fetch into {folder} "
        f"({', '.join(f'{part} {nbytes / 1e6:.0f}' for part, nbytes in missing.items())}"
        f"{f', index {index / 1e6:.0f}' if index else ''})"
    )
    check_space(folder, UNPACKED * total)
    progress.on_total(total)
    with writing(folder):
        device_parts.make_parts(parts, tuple(missing), folder, progress)
    progress.on_total(0)


def _assembled(parts: Parts, qemu: Qemu | None, rootfs: Path | None, folder: Path) -> Emulation:
    """The paths of all parts, without versions."""
    names = parts.names
    program = qemu.path if qemu else folder / names["qemu"] / device_parts.QEMU
    root = rootfs or folder / names["root"] / device_parts.ROOT
    libllama = device_llama.library(folder / names["llama"])
    return Emulation(program, root, python_of(root).path, folder / names["site"], libllama, {})


def _trial(made: Emulation, folder: Path, progress: Progress) -> dict[str, str]:
    """Import every library and load llama.cpp once -> the versions that they tell themselves."""
    progress.on_stage(f"trying it on a {TRIAL_CPU}")
    with unfinished(folder) as work:
        done = run(made.command(TRIAL_CPU, {}, "-c", TRIAL, str(made.libllama)), work, {})
    if done.code:
        ended = f"ended by signal {-done.code}" if done.code < 0 else f"exit {done.code}"
        raise EmoExportError(
            f"the emulated Python does not load the engines of {made.site.name} on a "
            f"{TRIAL_CPU} ({ended}):\n{done.tail(4)}"
        )
    return {key: str(value) for key, value in json.loads(done.out.splitlines()[-1]).items()}


def _versions(
    parts: Parts, qemu: Qemu | None, rootfs: Path | None, folder: Path, told: Mapping[str, str]
) -> dict[str, str]:
    """Name -> version, saying of each that is not the pinned one that it is not."""
    noted = {part: versions_of(folder / name) or {} for part, name in parts.names.items()}
    versions = dict(told) | noted["llama"]
    if qemu:
        pinned = " and ".join(sorted({one.version for one in parts.pins.qemu.values()}))
        versions["qemu"] = f"{qemu.version} ({qemu.path}, not the pinned Debian {pinned})"
    else:
        (debian,) = noted["qemu"].values()
        versions["qemu"] = (
            f"{qemu_version(folder / parts.names['qemu'] / device_parts.QEMU)} (Debian {debian})"
        )
    if rootfs:
        versions["root"] = f"{rootfs} (given, not the pinned Debian {parts.pins.suite})"
    else:
        versions["root"] = f"Debian {parts.pins.suite}"
        versions |= {name: text for name, text in noted["root"].items() if "not the pinned" in text}
    if parts.onnxruntime:
        (pin,) = (w for w in parts.pins.wheels[parts.python] if w.name == "onnxruntime")
        versions["onnxruntime"] += (
            f" (asked for, not the pinned {pin.version}; checked by the index's digest)"
        )
    return versions


def _record(made: Emulation, ready: Path) -> None:
    content = {name: str(getattr(made, name)) for name in PATHS}
    text = json.dumps(content | {"versions": dict(made.versions)}, indent=2) + "\n"
    with writing(ready), unfinished(ready.parent) as work:
        (work / ready.name).write_text(text, "utf-8")
        (work / ready.name).rename(ready)
