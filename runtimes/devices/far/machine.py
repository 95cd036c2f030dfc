"""What the machine says of itself to this process: the facts on which kernels are chosen."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path

AT_HWCAP, AT_HWCAP2 = 16, 26  # getauxval(3)
# Bits of the words that Linux gives an arm64 process (uapi/asm/hwcap.h), of what kernels ask for.
HWCAP = {
    "fp": 0,
    "asimd": 1,
    "aes": 3,
    "crc32": 7,
    "atomics": 8,
    "fphp": 9,
    "asimdhp": 10,
    "asimddp": 20,
    "sve": 22,
    "asimdfhm": 23,
}
HWCAP2 = {"sve2": 1, "svei8mm": 9, "svebf16": 12, "i8mm": 13, "bf16": 14, "sme": 23}
ENGINES = ("numpy", "onnxruntime", "tokenizers", "xllamacpp")


def machine_facts(cpuinfo: Path = Path("/proc/cpuinfo")) -> dict[str, str]:
    """Architecture, CPU features, system and versions as this process sees them."""
    libc = " ".join(platform.libc_ver())
    facts = {
        "architecture": platform.machine(),
        "CPU": _cpu(cpuinfo),
        "CPU features": " ".join(features(cpuinfo)),
        "cores": str(os.cpu_count() or "unknown"),
        "system": f"{platform.system()} {platform.release()}",
        "libc": libc or "unknown",
        "python": platform.python_version(),
    }
    for name in ENGINES:
        try:
            facts[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return facts


def features(cpuinfo: Path = Path("/proc/cpuinfo")) -> Sequence[str]:
    """What engines dispatch on: HWCAP on arm64 (not /proc/cpuinfo, which qemu-user makes up)."""
    if sys.platform == "linux" and platform.machine() == "aarch64":
        return arm64_features(*_hwcap())
    flags = _cpuinfo(cpuinfo).get("flags", "").split()
    return [flag for flag in flags if flag.startswith(("avx", "fma", "amx", "f16c", "sse4"))]


def arm64_features(first: int, second: int) -> list[str]:
    """The names of the bits that are set in HWCAP and HWCAP2."""
    found = [name for name, bit in HWCAP.items() if first >> bit & 1]
    return found + [name for name, bit in HWCAP2.items() if second >> bit & 1]


def _hwcap() -> tuple[int, int]:
    getauxval = ctypes.CDLL(None).getauxval
    getauxval.restype, getauxval.argtypes = ctypes.c_ulong, [ctypes.c_ulong]
    return int(getauxval(AT_HWCAP)), int(getauxval(AT_HWCAP2))


def _cpu(cpuinfo: Path) -> str:
    found = _cpuinfo(cpuinfo)
    board = Path("/proc/device-tree/model")
    names = [found.get("model name", ""), found.get("Model", "")]
    if board.is_file():
        names.append(board.read_text("utf-8", errors="replace").strip("\0\n"))
    part = found.get("CPU part", "")
    names.append(f"part {part}" if part else "")
    return ", ".join(dict.fromkeys(filter(None, names))) or "unknown"


def _cpuinfo(path: Path) -> Mapping[str, str]:
    """The first value of each key of /proc/cpuinfo; empty where there is none."""
    try:
        lines = path.read_text("utf-8", errors="replace").splitlines()
    except OSError:
        return {}
    pairs = [line.partition(":") for line in lines]
    return {key.strip(): value.strip() for key, _, value in reversed(pairs)}
