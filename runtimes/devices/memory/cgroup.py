"""A control group of Linux that caps the memory of the processes in it, swap included.

Of version 2, as root or in a subtree that is the user's (systemd gives a desktop session one). The
group lies below the nearest ancestor that can have it, so that every limit above holds too; this
process is not moved. Source: Linux `admin-guide/cgroup-v2.rst`.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from emo_export.errors import EmoExportError

PREFIX = "emo-export-"
ENTER = 'echo $$ > "$0" || exit 125; exec "$@"'
EMPTYING_SECONDS = 5.0
SWAPS = Path("/proc/swaps")
_TABLE = Path("/proc/self/mountinfo")
_OWN = Path("/proc/self/cgroup")


class MemoryGroup:
    """A group of its own for one run, with `limit` bytes. `how` says what it is, for the report."""

    how = "cgroup v2"

    def __init__(self, parent: Path, limit: int) -> None:
        """Raises OSError when it can't be made here, or holds no process or no limit."""
        _sweep(parent)
        self._folder = parent / f"{PREFIX}{os.getpid()}-{time.monotonic_ns()}"
        self.limit = 0
        self._folder.mkdir()
        try:
            self.raise_to(limit)
            swap = self._folder / "memory.swap.max"
            if swap.exists():
                swap.write_text("0")
            elif len(SWAPS.read_text().splitlines()) > 1:
                raise OSError(
                    "swap is in use and not counted here, so it would hide what is too much"
                )
            (self._folder / "memory.oom.group").write_text("1")
            subprocess.run(self.command(["true"]), check=True, capture_output=True)
        except subprocess.CalledProcessError as error:
            self.remove()
            raise OSError(error.stderr.decode(errors="replace").strip()) from error
        except BaseException:
            self.remove()
            raise

    def command(self, command: Sequence[str]) -> list[str]:
        """The command that enters the group and then becomes the given one, as the same process."""
        return ["/bin/sh", "-c", ENTER, str(self._folder / "cgroup.procs"), *command]

    def raise_to(self, limit: int) -> None:
        """Let it have so many bytes; a limit that is higher already stays."""
        if limit > self.limit:
            (self._folder / "memory.max").write_text(str(limit))
            self.limit = limit

    def oom_kills(self) -> int:
        """How many processes of the group the kernel ended because memory ran out."""
        events = (self._folder / "memory.events").read_text()
        found = re.search(r"^oom_kill (\d+)$", events, re.MULTILINE)
        return int(found[1]) if found else 0

    def remove(self) -> None:
        """End what still runs in it and remove it.

        Raises EmoExportError when a process in it can't be ended.
        """
        deadline = time.monotonic() + EMPTYING_SECONDS
        while self._folder.exists():
            for pid in _numbers(self._folder / "cgroup.procs"):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(OSError):  # busy until the last has ended
                self._folder.rmdir()
                return
            if time.monotonic() > deadline:
                raise EmoExportError(f"{self._folder}: a process in it does not end; remove it")
            time.sleep(0.01)


def memory_group(limit: int) -> tuple[MemoryGroup | None, str]:
    """A group with this limit and an empty string, or None and why none can be made here."""
    reasons = []
    for parent in _parents():
        try:
            return MemoryGroup(parent, limit), ""
        except OSError as error:
            reasons.append(f"{parent}: {error.strerror or error}")
    if not reasons:
        reasons = ["none with a memory controller is within reach"]
    advice = ""
    if shutil.which("systemd-run"):
        advice = "; with systemd, start the command with: systemd-run --user --scope --quiet"
    return None, f"no control group can be made here ({reasons[0]}){advice}"


def _parents() -> Iterator[Path]:
    """Folders below which a group with a limit may be made, nearest first.

    A group with processes can't give its children a memory controller.
    """
    try:
        own = [line.split(":", 2) for line in _OWN.read_text().splitlines()]
        mounts = [line.split() for line in _TABLE.read_text().splitlines()]
    except OSError:
        return
    names = [PurePosixPath(name) for _, controllers, name in own if not controllers]
    for fields in mounts:
        root, top = PurePosixPath(fields[3]), Path(fields[4])
        if fields[fields.index("-") + 1] != "cgroup2":
            continue
        for name in names:  # one, where version 2 is there at all
            if not name.is_relative_to(root):
                continue
            folder = top / name.relative_to(root)
            for ancestor in (folder, *folder.parents):
                given = ancestor / "cgroup.subtree_control"
                if given.is_file() and "memory" in given.read_text().split():
                    yield ancestor
                if ancestor == top:
                    break


def _sweep(parent: Path) -> None:
    """Remove empty groups that an emo-export left which was killed."""
    for folder in parent.glob(f"{PREFIX}*"):
        number = folder.name.removeprefix(PREFIX).partition("-")[0]
        if number.isdecimal() and not Path("/proc", number).exists():
            with contextlib.suppress(OSError):  # not empty: somebody's process is in it
                folder.rmdir()


def _numbers(file: Path) -> list[int]:
    try:
        return [int(word) for word in file.read_text().split()]
    except OSError:
        return []
