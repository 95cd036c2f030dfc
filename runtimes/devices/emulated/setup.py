"""Sets up what `--device pi4` and its like run on: qemu, an arm64 root, arm64 engines.

The parts lie in a cache folder (`place`), each under a name that changes with its pins, so that
nothing is ever changed in place: a part that is there is whole. `setup-….json` is written when all
parts were seen to work together; with it, a later call runs nothing and asks no network.
"""

from __future__ import annotations

import hashlib
import json
import platform
import re
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from emo_export.base.disk import check_space, writing
from emo_export.base.json_file import read_json
from emo_export.errors import EmoExportError, MissingDependencyError
from emo_export.runtimes.devices.emulated import debian, engines
from emo_export.runtimes.devices.emulated.emulation import Emulation, Version
from emo_export.runtimes.devices.emulated.fetch import Progress, run
from emo_export.runtimes.devices.emulated.pins import Pin, Pins, digest_of, read_pins
from emo_export.runtimes.devices.emulated.place import (
    locked,
    making,
    place,
    scratch,
    unfinished,
    versions_of,
    write_versions,
)
from emo_export.runtimes.devices.emulated.root import (
    Program,
    new_enough,
    python_of,
    qemu_on_path,
    qemu_version,
    refuse_qemu,
)

READY = "setup-"
PATHS = ("qemu", "root", "python", "site", "libllama")
HOSTS = {"x86_64": "amd64", "AMD64": "amd64", "aarch64": "arm64", "arm64": "arm64"}
QEMU, ROOT = "qemu-aarch64", "root"  # in the parts of qemu and root
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


@dataclass(frozen=True)
class Parts:
    """What a setup consists of. `made`: part (qemu, root, site, llama) -> what it is made of.

    `rootfs` and `qemu` are given instead of made. `python` is the version of the root's Python,
    such as "3.13", `onnxruntime` a version instead of the pinned one.
    """

    pins: Pins
    made: Mapping[str, Sequence[Pin]]
    python: str
    rootfs: Path | None = None
    qemu: Program | None = None
    onnxruntime: str | None = None

    def folder(self, part: str) -> str:
        """The name of its folder in the cache."""
        name = f"{part}-{digest_of(self.made[part])}"
        if part == "site":
            other = f"-onnxruntime-{self.onnxruntime}" if self.onnxruntime else ""
            name = f"{part}-{self.python}-{digest_of(self.made[part])}{other}"
        return name

    @property
    def ready(self) -> str:
        """The name of the file that tells of them; it changes with everything they depend on."""
        facts = sorted(map(self.folder, self.made))
        programs = [python_of(self.rootfs).path] if self.rootfs else []
        programs += [self.qemu.path] if self.qemu else []
        facts += [f"{path} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in programs]
        return f"{READY}{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12]}.json"


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
    parts = _parts(onnxruntime, rootfs.resolve() if rootfs else None)
    folder = place()
    ready = folder / parts.ready
    found = ready_emulation(ready)
    if found is not None:
        return found
    with locked(folder, progress.on_stage):
        found = ready_emulation(ready)  # another process may have been faster
        if found is None:
            _fetch(parts, folder, progress)
            found = _assembled(parts, folder)
            told = _trial(found, folder, progress)
            found = replace(found, versions=_versions(parts, folder, told))
            _record(found, ready)
        return found


def existing() -> Emulation | None:
    """What the pinned setup runs on when it is there; nothing is done for it."""
    return ready_emulation(place() / _parts(None, None).ready)


def _parts(onnxruntime: str | None, rootfs: Path | None) -> Parts:
    """What is needed.

    Raises MissingDependencyError for a system or machine without qemu, EmoExportError for a root
    that will not do, a Python without pinned wheels, or what is no version.
    """
    if sys.platform != "linux":
        raise MissingDependencyError(
            f"qemu runs Linux programs on Linux alone, and this is {sys.platform}; use a Linux "
            "machine or container, or a real device with --device ssh://host"
        )
    pins = read_pins()
    python = python_of(rootfs).version if rootfs else pins.python
    qemu = _qemu_of_path() if rootfs else None
    if python not in pins.wheels:
        raise EmoExportError(
            f"the root's Python is {python}; arm64 wheels are pinned for {', '.join(pins.wheels)}. "
            "Give another root with --rootfs"
        )
    if onnxruntime is not None and not re.fullmatch(r"\d+(\.\d+)+[a-z0-9.]*", onnxruntime):
        raise EmoExportError(f"--onnxruntime {onnxruntime}: not a version; expected as in 1.21.0")
    wheels = pins.wheels[python]
    if onnxruntime in [wheel.version for wheel in wheels if wheel.name == "onnxruntime"]:
        onnxruntime = None
    if onnxruntime:
        wheels = tuple(wheel for wheel in wheels if wheel.name != "onnxruntime")
    made: dict[str, Sequence[Pin]] = {"site": wheels, "llama": [pins.llama]}
    if qemu is None:
        arch = HOSTS.get(platform.machine(), "")
        if arch not in pins.qemu:
            raise MissingDependencyError(
                f"qemu is pinned for {' and '.join(pins.qemu)}, and this machine is "
                f"{platform.machine()}; give a root with --rootfs, and put qemu-aarch64 10 or "
                "newer on PATH"
            )
        made["qemu"] = [pins.qemu[arch]]
    if rootfs is None:
        made["root"] = pins.root
    return Parts(pins, made, python, rootfs, qemu, onnxruntime)


def _qemu_of_path() -> Program | None:
    """The one of PATH, or None where the pinned one can be fetched instead.

    Raises MissingDependencyError, which names the version found, where there is no other.
    """
    found = qemu_on_path()
    if found is not None and new_enough(found):
        return found
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise refuse_qemu(found)
    return None


def ready_emulation(ready: Path) -> Emulation | None:
    """What a ready file tells, or None without one or when a part has gone since."""
    if not ready.is_file():
        return None
    try:
        content = read_json(ready)
        paths = {name: Path(content[name]) for name in PATHS}
        versions = {name: Version(**said) for name, said in content["versions"].items()}
    except (EmoExportError, KeyError, TypeError, AttributeError) as error:
        raise EmoExportError(
            f"{ready} is damaged; remove it and run `emo-export device setup`"
        ) from error
    if not all(path.exists() for path in paths.values()):
        return None
    return Emulation(**paths, versions=versions)


def _fetch(parts: Parts, folder: Path, progress: Progress) -> None:
    missing = {
        part: sum(pin.nbytes for pin in parts.made[part])
        for part in ("qemu", "root", "site", "llama")
        if part in parts.made and versions_of(folder / parts.folder(part)) is None
    }
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
        make_parts(parts, tuple(missing), folder, progress)
    progress.on_total(0)


def make_parts(parts: Parts, missing: Sequence[str], folder: Path, progress: Progress) -> None:
    """Make the parts named. The folder's lock must be held."""
    if "site" in missing:  # asked now, not after a minute of downloads
        engines.installer(parts.python)
    from_debian = {part: parts.made[part] for part in ("qemu", "root") if part in missing}
    with unfinished(folder) as work:
        fetched = []
        if from_debian:  # by one reading of its index
            pins = [pin for some in from_debian.values() for pin in some]
            fetched = debian.fetch(pins, parts.pins.suite, work, progress)
        if "qemu" in missing:
            qemu = fetched.pop(0)
            with making(folder, parts.folder("qemu")) as part:
                debian.unpack_qemu(qemu, part / QEMU)
                write_versions(part, {qemu.pin.name: qemu.version})
        if "root" in missing:
            with making(folder, parts.folder("root")) as part:
                debian.unpack_root(fetched, part / ROOT, scratch(part))
                write_versions(part, {one.pin.name: one.version for one in fetched})
    if "site" in missing:
        with making(folder, parts.folder("site")) as part:
            other = [f"onnxruntime=={parts.onnxruntime}"] if parts.onnxruntime else []
            wheels, python = parts.made["site"], parts.python
            engines.install_wheels(wheels, other, python, part, scratch(part), progress)
            found = engines.installed(part)
            write_versions(part, {name: Version(text) for name, text in found.items()})
    if "llama" in missing:
        (pin,) = parts.made["llama"]
        with making(folder, parts.folder("llama")) as part:
            version = engines.unpack_llama(engines.fetch_llama(pin, scratch(part), progress), part)
            note = f"npm {pin.name} {pin.version}"
            write_versions(part, {"llama.cpp": Version(version, note=note)})


def _assembled(parts: Parts, folder: Path) -> Emulation:
    """The paths of all parts, without versions."""
    qemu = parts.qemu.path if parts.qemu else folder / parts.folder("qemu") / QEMU
    root = parts.rootfs or folder / parts.folder("root") / ROOT
    library = engines.libllama(folder / parts.folder("llama"))
    return Emulation(qemu, root, python_of(root).path, folder / parts.folder("site"), library, {})


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


def _versions(parts: Parts, folder: Path, told: Mapping[str, str]) -> dict[str, Version]:
    """What all of it is, and of each whether it is the pinned one."""
    noted = {part: versions_of(folder / parts.folder(part)) or {} for part in parts.made}
    versions = {name: Version(text) for name, text in told.items()} | noted["llama"]
    if parts.qemu:
        pinned = " and ".join(sorted({one.version for one in parts.pins.qemu.values()}))
        note = f"{parts.qemu.path}, not the pinned Debian {pinned}"
        versions["qemu"] = Version(parts.qemu.version, False, note)
    else:
        (package,) = noted["qemu"].values()
        version = qemu_version(folder / parts.folder("qemu") / QEMU)
        versions["qemu"] = Version(version, package.pinned, f"Debian {package}")
    suite = f"Debian {parts.pins.suite}"
    if parts.rootfs:
        versions["root"] = Version(str(parts.rootfs), False, f"given, not the pinned {suite}")
    else:
        versions["root"] = Version(suite)
        versions |= {name: one for name, one in noted["root"].items() if not one.pinned}
    if parts.onnxruntime:
        (pin,) = (w for w in parts.pins.wheels[parts.python] if w.name == "onnxruntime")
        note = f"asked for, not the pinned {pin.version}; checked by the index's digest"
        versions["onnxruntime"] = Version(told["onnxruntime"], False, note)
    return versions


def _record(made: Emulation, ready: Path) -> None:
    content = {name: str(getattr(made, name)) for name in PATHS}
    versions = {name: asdict(version) for name, version in made.versions.items()}
    text = json.dumps(content | {"versions": versions}, indent=2) + "\n"
    with writing(ready), unfinished(ready.parent) as work:
        (work / ready.name).write_text(text, "utf-8")
        (work / ready.name).rename(ready)
