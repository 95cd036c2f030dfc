"""What processes hold in memory, by /proc: anonymous and file-backed apart, an emulator's apart.

File-backed pages count as PSS: in part where other processes have them mapped too.

Under qemu-user the guest's mappings are mappings of the emulator's process. What the host itself
may execute is the emulator's: its program, its libraries and the code that it translates to (guest
code is only read). So are its heap and its first stack. What it maps besides, blocks of malloc of
some MB in all, cannot be told from the guest's and counts as the guest's: 9 MB of 70 with ONNX
Runtime on emo-nano (qemu 10.0.13, beside the guest's own list of its mappings).
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

PROC = Path("/proc")
EMULATOR = re.compile(r"qemu-[a-z0-9_]+(-static)?$")
_HEADER = re.compile(r"([0-9a-f]+)-([0-9a-f]+) (\S{4}) \S+ \S+ \S+ *(.*)")
_KERNEL_NAMES = ("[heap]", "[stack]", "[vdso]", "[vvar]", "[vvar_vclock]")


@dataclass(frozen=True)
class Held:
    """Bytes: anonymous, file-backed (of them `model`, of the files asked for), and an emulator's.

    What is the emulator's is in none of the others.
    """

    anonymous: int = 0
    file: int = 0
    model: int = 0
    emulator: int = 0

    def __add__(self, other: Held) -> Held:
        """The sum over processes."""
        return Held(
            self.anonymous + other.anonymous,
            self.file + other.file,
            self.model + other.model,
            self.emulator + other.emulator,
        )


class Mapping(NamedTuple):
    """One entry of /proc/PID/smaps: addresses, permissions, path or name, and bytes."""

    start: int
    stop: int
    permissions: str
    path: str
    anonymous: int
    file: int


def held_by(pids: Sequence[int], model: frozenset[str], emulated: bool) -> Held | None:
    """What processes hold; None when they are gone or the system does not tell.

    `model`: real paths of the files whose pages are told apart. `emulated`: take the emulator's
    share off; a process beside the emulator, a shell that started it, is counted with its share.
    """
    total, seen = Held(), False
    for pid in pids:
        mappings = read_mappings(pid)
        if mappings:
            seen = True
            total += _guest(pid, mappings, model) if emulated else _plain(mappings, model)
    return total if seen else None


def peak_resident() -> int | None:
    """The most bytes that this process had in memory at once; None where the system has no word."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def rss_anonymous(pid: int) -> int:
    """The kernel's counter of a process's anonymous memory, bytes; 0 when it is gone."""
    return sizes(PROC / str(pid) / "status").get("RssAnon", 0)


def _plain(mappings: Sequence[Mapping], model: frozenset[str]) -> Held:
    return Held(
        sum(m.anonymous for m in mappings),
        sum(m.file for m in mappings),
        sum(m.file for m in mappings if m.path in model),
    )


def _guest(pid: int, mappings: Sequence[Mapping], model: frozenset[str]) -> Held:
    try:
        program = str((PROC / str(pid) / "exe").readlink())
    except OSError:
        program = ""
    own = [True] * len(mappings)
    if EMULATOR.search(program.rpartition("/")[2]):
        own = list(_emulators(mappings, program))
    guest = [m for m, is_own in zip(mappings, own, strict=True) if not is_own]
    emulator = [m for m, is_own in zip(mappings, own, strict=True) if is_own]
    found = _plain(guest, model)
    return Held(
        found.anonymous, found.file, found.model, sum(m.anonymous + m.file for m in emulator)
    )


def _emulators(mappings: Sequence[Mapping], program: str) -> Iterator[bool]:
    """For each mapping whether it is the emulator's own."""
    runs = {m.path for m in mappings if "x" in m.permissions and m.path} | {program}
    before, end = False, 0
    for m in mappings:
        # Zeroed data of a program follows its file's pages without a name.
        follows = before and not m.path and m.start == end and "w" in m.permissions
        before = "x" in m.permissions or m.path in runs or m.path in _KERNEL_NAMES or follows
        end = m.stop
        yield before
        before = before and m.path in runs


def descendants(pid: int) -> list[int]:
    """All children of a process and theirs."""
    children: dict[int, list[int]] = {}
    for folder in PROC.iterdir():
        if folder.name.isdecimal():
            try:
                fields = (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()
            except OSError:  # it has ended meanwhile
                continue
            children.setdefault(int(fields[1]), []).append(int(folder.name))
    found = list(children.get(pid, ()))
    for child in found:
        found += children.get(child, ())
    return found


def read_mappings(pid: int) -> list[Mapping]:
    """The entries of /proc/PID/smaps; none where it is gone or may not be read."""
    try:
        text = (PROC / str(pid) / "smaps").read_text(errors="replace")
    except OSError:
        return []
    found: list[Mapping] = []
    pss = 0
    for line in text.splitlines():
        if match := _HEADER.match(line):
            start, stop, permissions, path = match.groups()
            found.append(Mapping(int(start, 16), int(stop, 16), permissions, path, 0, 0))
        elif line.startswith("Pss:"):
            pss = int(line.split()[1]) * 1024
        elif line.startswith("Anonymous:"):
            anonymous = int(line.split()[1]) * 1024
            # Anonymous pages that a fork shares are in PSS in part only.
            found[-1] = found[-1]._replace(anonymous=anonymous, file=max(0, pss - anonymous))
    return found


def sizes(path: Path) -> dict[str, int]:
    """The lines `Name:  N kB` of a file of /proc, in bytes."""
    try:
        lines = [line.split() for line in path.read_text().splitlines()]
    except OSError:
        return {}
    return {p[0][:-1]: int(p[1]) * 1024 for p in lines if len(p) == 3 and p[2] == "kB"}
