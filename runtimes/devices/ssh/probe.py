"""What a machine at the other end of ssh is, found with its shell alone, and whether it will do."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from emo_export.errors import EmoExportError, MissingDependencyError

PYTHON_MIN = (3, 11)
MACHINES = ("x86_64", "aarch64")
PYTHONS = ("python3", "python3.11", "python3.12", "python3.13", "python3.14")
MARK = "emo-export:"  # a login script may print lines of its own before ours

_VERSION = "import sys; print(*sys.version_info[:3], sys.maxsize.bit_length() + 1)"
_BOOT = (
    "import os, sys, tempfile; r, n = os.path.abspath(sys.argv[1]), int(sys.argv[2]); "
    "b = sys.stdin.buffer.read(n); len(b) == n or sys.exit(1); "
    "os.makedirs(r, exist_ok=True); d = tempfile.mkdtemp(dir=r); z = d + '/runtime.zip'; "
    "open(z, 'wb').write(b); sys.path.insert(0, z); "
    "from emo_export.runtimes.devices.far.side import main; main(d, sys.argv[3])"
)


@dataclass(frozen=True)
class FarPython:
    """A Python there: the path, its version, and 32 or 64 bits; neither when it does not start."""

    path: str
    version: tuple[int, ...]
    bits: int


@dataclass(frozen=True)
class Probe:
    """What uname says there (`bits`: of its C library, None where it does not tell)."""

    system: str
    machine: str
    bits: int | None
    pythons: tuple[FarPython, ...]


def probe_command() -> str:
    """A command line for the login shell there, whatever that is: it needs `sh`.

    It prints what `read_probe` reads, then waits for the path of a Python and a count of bytes, and
    starts that Python, which reads so many bytes of zip and is `far_side` from then on.
    """
    # One line without an apostrophe's newline: csh takes no other.
    script = "; ".join(
        [
            "umask 077",
            f'say() {{ printf "{MARK}%s\\n" "$*"; }}',
            'say system "$(uname -s)"',
            'say machine "$(uname -m)"',
            'say bits "$(getconf LONG_BIT 2>/dev/null)"',
            f'for p in {" ".join(PYTHONS)}; do q=$(command -v $p) && say python "$q" '
            f'"$("$q" -c {shlex.quote(_VERSION)} 2>/dev/null </dev/null | tail -n 1)"; done',
            "say end",
            "read -r python && read -r count || exit 0",
            'runs="${XDG_CACHE_HOME:-$HOME/.cache}/emo-export/runs"',
            f'exec "$python" -X utf8 -P -c {shlex.quote(_BOOT)} "$runs" "$count" "$python"',
        ]
    )
    return f"sh -c {shlex.quote(script)}"  # no exec: a restricted shell has none


def read_probe(lines: Sequence[str]) -> Probe:
    """The lines behind MARK, without it."""
    said: dict[str, str] = {}
    pythons = []
    for line in lines:
        key, _, value = line.partition(" ")
        words = value.split()
        if key == "python" and len(words) >= 5 and all(word.isdigit() for word in words[-4:]):
            path = value.rsplit(maxsplit=4)[0]
            numbers = [int(word) for word in words[-4:]]
            pythons.append(FarPython(path, tuple(numbers[:3]), numbers[3]))
        elif key == "python" and value:
            pythons.append(FarPython(value.strip(), (), 0))
        elif key != "python":
            said[key] = value.strip()
    bits = said.get("bits", "")
    number = int(bits) if bits.isdigit() else None
    return Probe(said.get("system", ""), said.get("machine", ""), number, tuple(pythons))


def choose_python(name: str, probe: Probe) -> FarPython:
    """The first Python there that will do.

    Raises EmoExportError for a machine that can't be one of ours, MissingDependencyError for a
    Python that is too old or not there.
    """
    if probe.system != "Linux":
        raise EmoExportError(f"{name}: runs {probe.system or 'an unknown system'}, expected Linux")
    if probe.machine not in MACHINES:
        raise EmoExportError(
            f"{name}: is a machine of type {probe.machine or 'unknown'}; the engines have builds "
            f"for {' and '.join(MACHINES)} only{_hint(probe.machine)}"
        )
    if probe.bits == 32 or ({p.bits for p in probe.pythons} == {32}):
        raise EmoExportError(
            f"{name}: has a 64-bit kernel ({probe.machine}) but 32-bit programs, for which the "
            "engines have no builds; install the 64-bit system (Raspberry Pi OS 64-bit) on it"
        )
    for python in probe.pythons:
        if python.version >= PYTHON_MIN and python.bits == 64:
            return python
    raise MissingDependencyError(f"{name}: {_no_python(probe)}")


def _hint(machine: str) -> str:
    if machine.startswith(("armv6", "armv7", "armv8l")):
        return "; a Raspberry Pi 3 or newer has them with the 64-bit Raspberry Pi OS"
    return ""


def _no_python(probe: Probe) -> str:
    least = ".".join(map(str, PYTHON_MIN))
    advice = (
        f"install Python {least} or newer there: sudo apt install python3 on Debian 12, Raspberry "
        f"Pi OS 12, Ubuntu 24.04 or newer; elsewhere `uv python install {least}`, with its folder "
        "on the PATH of ssh sessions"
    )
    if not probe.pythons:
        return f"has no python3 on the PATH of an ssh session; {advice}"
    shown = ", ".join(
        f"{p.path} ({'.'.join(map(str, p.version)) or 'does not start'})" for p in probe.pythons
    )
    return f"has only {shown}; {advice}"
