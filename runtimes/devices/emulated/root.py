"""What a given root and a given qemu are: an arm64 one with Python, a new enough one."""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
from pathlib import Path
from typing import NamedTuple

from emo_export.errors import EmoExportError, MissingDependencyError

QEMU_NAMES = ("qemu-aarch64", "qemu-aarch64-static")
QEMU_OLDEST = 10  # 7.2 crashes on numpy's and ONNX Runtime's code
QEMU_REMEDY = (
    "install qemu 10 or newer: apt-get install qemu-user (Debian 13), dnf install "
    "qemu-user-static-aarch64 (Fedora), pacman -S qemu-user (Arch)"
)
PYTHON_OLDEST = (3, 11)
LINKS = 40  # as many as the kernel follows
AARCH64, X86_64 = 183, 62  # e_machine of ELF
MACHINES = {3: "i386", 40: "32-bit ARM", X86_64: "x86-64", AARCH64: "arm64", 243: "RISC-V"}


class Program(NamedTuple):
    """A Python of a root with its version, such as "3.13", or a qemu-aarch64, such as 10.0.13."""

    path: Path
    version: str


def qemu_on_path() -> Program | None:
    """The one that PATH has, new or old. Raises EmoExportError when it tells no version."""
    found = next(filter(None, map(shutil.which, QEMU_NAMES)), None)
    return Program(Path(found), qemu_version(Path(found))) if found else None


def qemu_version(path: Path) -> str:
    """What `--version` says. Raises EmoExportError when that is no version of qemu-aarch64."""
    try:
        done = subprocess.run(
            [str(path), "--version"], capture_output=True, text=True, timeout=30, check=False
        )
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "strerror", None) or error
        raise EmoExportError(f"{path} can't be run: {said}") from error
    match = re.match(r"qemu-aarch64 version (\d+(\.\d+)*)", done.stdout)
    if match is None:
        said = (done.stdout + done.stderr).strip().splitlines() or ["nothing"]
        raise EmoExportError(f"{path} --version says: {said[0]}; expected qemu-aarch64 version …")
    return match[1]


def new_enough(qemu: Program) -> bool:
    """Whether it runs numpy and ONNX Runtime."""
    return int(qemu.version.partition(".")[0]) >= QEMU_OLDEST


def refuse_qemu(qemu: Program | None) -> MissingDependencyError:
    """The error for a qemu that is missing or too old."""
    found = f"{qemu.path} is version {qemu.version}" if qemu else "PATH has no qemu-aarch64"
    return MissingDependencyError(f"{found}; {QEMU_REMEDY}")


def python_of(root: Path) -> Program:
    """The newest python3 of a root, by its name.

    Raises EmoExportError when there is none, or it is not an arm64 program.
    """
    if not root.is_dir():
        raise EmoExportError(
            f"{root}: there is no such folder; it should be the root of an arm64 system"
        )
    found = {
        _minor(path): path
        for bin_ in ("usr/bin", "usr/local/bin")
        for path in (root / bin_).glob("python3*")
    }
    found.pop(None, None)
    newest = max((minor for minor in found if minor is not None), default=None)
    if newest is None:
        raise EmoExportError(
            f"{root}: no usr/bin/python3.N or usr/local/bin/python3.N; it should be the root of an "
            "arm64 system with Python 3.11 or newer"
        )
    if (3, newest) < PYTHON_OLDEST:
        raise EmoExportError(f"{root}: its newest Python is 3.{newest}; 3.11 or newer is needed")
    program = inside(root, found[newest])
    refuse_other_machines(program)
    return Program(program, f"3.{newest}")


def _minor(path: Path) -> int | None:
    match = re.fullmatch(r"python3\.(\d+)", path.name)
    return int(match[1]) if match else None


def inside(root: Path, path: Path) -> Path:
    """Follow links as they mean it in the root: an absolute one starts at the root.

    Raises EmoExportError for a link that leads nowhere.
    """
    for _ in range(LINKS):
        if not path.is_symlink():
            break
        target = path.readlink()
        path = root / target.relative_to("/") if target.is_absolute() else path.parent / target
    if not path.is_file():
        raise EmoExportError(f"{path} is not a file, or a link to none")
    return path


def refuse_other_machines(program: Path) -> None:
    """Raise EmoExportError for what is not a 64-bit ELF file of arm64."""
    with program.open("rb") as file:
        header = file.read(20)
    if len(header) < 20 or header[:4] != b"\x7fELF":
        raise EmoExportError(f"{program} is not a program (no ELF header); an arm64 one is needed")
    # e_ident: class 2 is 64 bits, data 1 little-endian; e_machine is the 16 bits at 18.
    (machine,) = struct.unpack_from("<H", header, 18)
    if header[4:6] != b"\x02\x01" or machine != AARCH64:
        found = MACHINES.get(machine, f"ELF machine {machine}")
        raise EmoExportError(f"{program} is a program for {found}; an arm64 root is needed")
