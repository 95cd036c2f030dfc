"""A command run with so much memory and no more, and what it held while it ran.

Where a control group can be made the kernel holds it to the limit, page cache and swap included,
and ends it when it needs more. Elsewhere it is only sampled, which the result says. RLIMIT_DATA and
RLIMIT_AS are no substitute: they count what is mapped, not what is in memory.

An emulator's own memory is charged to the same group. It grows with the code that runs, so the
group's limit begins START above what was asked for and stays STEP above the share that is measured:
so much too much may be had under an emulator, which the sampled peak then tells.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from emo_export.base.memory_mark import MARK
from emo_export.base.page_cache import drop
from emo_export.base.process_memory import (
    PROC,
    Held,
    descendants,
    held_by,
    read_mappings,
    rss_anonymous,
)
from emo_export.base.ram_size import shown
from emo_export.base.scratch import Scratch
from emo_export.base.tied import tied
from emo_export.errors import EmoExportError
from emo_export.runtimes.devices.device import Finished
from emo_export.runtimes.devices.memory.cgroup import MemoryGroup, memory_group

GLANCE_SECONDS = 0.01  # between looks at the kernel's counters, which cost nothing
LOOK_SECONDS, LONGEST = 0.05, 1.0  # between looks at all mappings, at least and at most
SHARE = 0.05  # of the time that these may take: the kernel walks over all pages
MOST_SAMPLES = 2000  # beyond which every other is left out
START, STEP = 64 << 20, 32 << 20  # qemu starts with 30 MB, and grew by 22 MB between two looks


@dataclass
class MemoryFound:
    """What a run held. Bytes; peaks are of samples; `peak` is of anonymous and file together.

    `limit`: what it was given (None: nothing was asked for). `finished`: the command ended with
    code 0. `enforced`: the kernel held it to the limit; `how` says by what, or why not.
    `emulator_bytes`: the most that an emulator itself held, which is in no other figure.
    `oom_killed`: the kernel ended it because the limit was reached. `base`: before the model was
    opened, None where that moment wasn't seen. `at_peak`: the look that the process waited for
    after that, or else the one with the most anonymous memory. `not_dropped`: bytes of the model's
    files that were in the page cache beforehand and stayed, so that they were not charged.
    `samples`: (seconds, anonymous, file).
    """

    limit: int | None
    finished: bool = False
    enforced: bool = False
    how: str = ""
    peak_anonymous: int = 0
    peak_file: int = 0
    peak: int = 0
    emulator_bytes: int = 0
    oom_killed: bool = False
    base: Held | None = None
    at_peak: Held | None = None
    not_dropped: dict[str, int] = field(default_factory=dict)
    samples: list[tuple[float, int, int]] = field(default_factory=list)

    def take(self, seconds: float, held: Held) -> None:
        """Add one look."""
        if self.at_peak is None or held.anonymous >= self.at_peak.anonymous:
            self.at_peak = held
        self.emulator_bytes = max(self.emulator_bytes, held.emulator)
        self.sample(seconds, held.anonymous, held.file)

    def sample(self, seconds: float, anonymous: int, file: int) -> None:
        """Add a sample to peaks and samples."""
        self.peak_anonymous = max(self.peak_anonymous, anonymous)
        self.peak_file = max(self.peak_file, file)
        self.peak = max(self.peak, anonymous + file)
        self.samples.append((round(seconds, 3), anonymous, file))
        if len(self.samples) > MOST_SAMPLES:
            self.samples = self.samples[::2]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        found = {key: getattr(self, key) for key in self.__dataclass_fields__}
        for name in ("base", "at_peak"):
            held = found.pop(name)
            for part in ("anonymous", "file", "model"):
                found[f"{name}_{part}"] = None if held is None else getattr(held, part)
        return found | {"samples": [list(sample) for sample in self.samples]}


def run_capped(
    command: Sequence[str],
    env: Mapping[str, str],
    limit: int | None,
    model: Sequence[Path],
    emulated: bool = False,
) -> tuple[Finished, MemoryFound]:
    """Run a command with at most `limit` bytes (None: sampled alone) and watch its memory.

    `model`: the files of the model, dropped from the page cache first so that they are charged, and
    told apart from other files. `emulated`: the command runs under qemu-user. Whatever happens,
    Ctrl-C too, nothing of it is left running and no group is left. Raises EmoExportError on a
    system that tells no process's memory, when a file of the model can't be read, and when the
    command can't be started.
    """
    if not read_mappings(os.getpid()):
        raise EmoExportError(
            f"memory is looked at in {PROC}/PID/smaps, which this system does not have; use a "
            "Linux machine for --ram"
        )
    found = MemoryFound(limit)
    if limit is not None:
        found.not_dropped = {str(path): left for path, left in drop(model).items()}
    allowed = 0 if limit is None else limit + (START if emulated else 0)
    with _group(allowed, found) as group, Scratch("ram") as folder:
        mark = folder / "mark"
        entering = list(command) if group is None else group.command(command)
        out_file, err_file = folder / "out", folder / "err"
        with out_file.open("w+b") as out, err_file.open("w+b") as err:
            process = _started(entering, {**env, MARK: str(mark)}, out, err)
            try:
                files = frozenset(str(path.resolve()) for path in model)
                _watch(process, _Watch(found, files, emulated, mark), group)
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                code = process.wait()
            said = [_text(file) for file in (out, err)]
        found.finished = code == 0
        if group is not None:
            found.oom_killed = group.oom_kills() > 0
    return Finished(code, *said), found


def _started(
    command: Sequence[str], env: Mapping[str, str], out: BinaryIO, err: BinaryIO
) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            env=dict(env),
            start_new_session=True,
            preexec_fn=tied(),
        )
    except OSError as error:
        raise EmoExportError(f"{command[0]}: cannot be started ({error.strerror})") from error


@contextmanager
def _group(limit: int, found: MemoryFound) -> Iterator[MemoryGroup | None]:
    if not limit:
        yield None
        return
    group, why = memory_group(limit)
    found.enforced, found.how = group is not None, why if group is None else group.how
    if group is not None and found.not_dropped:
        found.how += (
            f"; {shown(sum(found.not_dropped.values()))} of the model stayed in the page cache, "
            "where another process has mapped them, and were not charged"
        )
    try:
        yield group
    finally:
        if group is not None:
            group.remove()


class _Watch:
    """Looks at the memory of a process and its descendants."""

    def __init__(
        self, found: MemoryFound, model: frozenset[str], emulated: bool, mark: Path
    ) -> None:
        self._found, self._model, self._emulated, self._mark = found, model, emulated, mark
        self._start = time.perf_counter()
        self._pids: list[int] = []
        self._held = Held()

    def look(self, pid: int) -> Held:
        """At all mappings; the first time that the process waits for it, that is the base."""
        waits = self._mark.exists()
        self._pids = [pid, *descendants(pid)]
        held = held_by(self._pids, self._model, self._emulated)
        if held is not None:
            self._held = held
            self._found.take(time.perf_counter() - self._start, held)
            if waits and self._found.base is None:
                self._found.base = held
            elif waits:
                self._found.at_peak = held  # all is in memory then
        if waits:
            self._mark.unlink(missing_ok=True)
        return self._held

    def glance(self) -> bool:
        """At the counters of anonymous memory; answers whether the process waits to be seen.

        They hold an emulator's memory too, so they say nothing of an emulated process, which is
        slow enough to be seen without.
        """
        if not self._emulated:
            anonymous = sum(rss_anonymous(pid) for pid in self._pids)
            if anonymous > self._found.peak_anonymous:
                seconds = time.perf_counter() - self._start
                self._found.sample(seconds, anonymous, self._held.file)
        return self._mark.exists()


def _watch(process: subprocess.Popen[bytes], watch: _Watch, group: MemoryGroup | None) -> None:
    """Look at its memory until it ends; the limit of a `group` follows the emulator's share."""
    asked = group.limit if group is not None else 0
    while True:
        began = time.thread_time()  # not what others make us wait
        held = watch.look(process.pid)
        if group is not None and held.emulator:
            group.raise_to(asked - START + held.emulator + STEP)
        taken = time.thread_time() - began
        until = time.perf_counter() + min(LONGEST, max(LOOK_SECONDS, taken / SHARE))
        while time.perf_counter() < until:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GLANCE_SECONDS)
                return
            if watch.glance():
                break


def _text(file: Any) -> str:
    file.seek(0)
    data: bytes = file.read()
    return data.decode("utf-8", errors="replace")
