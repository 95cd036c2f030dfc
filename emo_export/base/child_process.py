"""A child process that answers requests, one JSON line for each, and what it costs the machine.

Memory and CPU time come from /proc and are None where there is none.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emo_export.base.posix import need_posix
from emo_export.base.process_memory import PROC, sizes
from emo_export.base.tied import tied
from emo_export.errors import EmoExportError, MissingDependencyError

SAMPLE_SECONDS, SAMPLE_SHARE = 0.1, 0.02  # between looks at memory; of the time, at most
LAST_WORDS = 8  # lines of a dead child's stderr that are shown
TIMEOUT = 3600.0
"""Seconds without an answer after which a child hangs: a disk of 15 MB/s reads 54 GB in these."""


class ChildHangsError(EmoExportError):
    """A child did not answer in time, and was ended."""


def child_command(module: str, *arguments: str) -> list[str]:
    """One of our modules in this interpreter, which does not search the folder it is called in."""
    return [sys.executable, "-P", "-m", module, *arguments]


def child_environment() -> dict[str, str]:
    """The environment of this process, and its module path."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


@dataclass
class Memory:
    """The most bytes of a process seen so far: anonymous, mapped from files, resident in all.

    The first two are sampled from smaps_rollup (pages of files shared with others count in part);
    the last is the kernel's own peak.
    """

    anonymous: int
    file: int
    resident: int


class Child:
    """One child, in a session of its own so that Ctrl-C reaches its parent alone."""

    def __init__(self, label: str, module: str, timeout: float = TIMEOUT) -> None:
        self.label, self._timeout = label, timeout
        need_posix()
        self.memory: Memory | None = None
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - kill closes it
        self._process = subprocess.Popen(
            child_command(module),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            env=child_environment(),
            start_new_session=True,
            preexec_fn=tied(),
        )

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def ask(self, request: Mapping[str, Any], *, sample: bool = False) -> dict[str, Any]:
        """Send a request and wait for its answer; `sample` looks at its memory meanwhile too.

        Raises EmoExportError with what the child refused, with its last words when it died, and for
        one that hangs, which is ended.
        """
        stdin, stdout = self._process.stdin, self._process.stdout
        if stdin is None or stdout is None or stdin.closed:
            raise EmoExportError(f"{self.label}: its process has been ended")
        try:
            stdin.write(json.dumps(request).encode() + b"\n")
            stdin.flush()
        except BrokenPipeError:
            self._died()
        wait = SAMPLE_SECONDS if sample else self._timeout
        end = time.monotonic() + self._timeout
        while not select.select([stdout], [], [], min(wait, self._timeout))[0]:
            if time.monotonic() >= end:
                self.kill()
                raise ChildHangsError(hangs(self.label, self._timeout))
            start = time.perf_counter()
            self._look()  # the kernel walks over all pages, and the child may wait for it
            wait = max(SAMPLE_SECONDS, (time.perf_counter() - start) / SAMPLE_SHARE)
        line = stdout.readline()
        if not line.endswith(b"\n"):
            self._died()
        self._look()
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            kind = MissingDependencyError if answer["missing"] else EmoExportError
            raise kind(f"{self.label}: {answer['error']}")
        return answer

    def cpu_seconds(self) -> float | None:
        """CPU time that it has used."""
        try:
            fields = (PROC / str(self.pid) / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            return None
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def kill(self) -> None:
        """End it at once; a second call does nothing."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(BrokenPipeError):  # of a request that it never read
                if pipe is not None:
                    pipe.close()
        self._said.close()

    def _look(self) -> None:
        found = memory_of(PROC / str(self.pid))
        if found is None:
            return
        seen = self.memory or Memory(0, 0, 0)
        self.memory = Memory(
            max(seen.anonymous, found.anonymous),
            max(seen.file, found.file),
            max(seen.resident, found.resident),
        )

    def _died(self) -> None:
        code = self._process.wait()
        self._said.seek(0)
        words = self._said.read().decode("utf-8", errors="replace").strip().splitlines()
        how = f"with code {code}"
        if code < 0:
            how = f"by {signal.Signals(-code).name}"
            how += " (out of memory?)" if -code == signal.SIGKILL else ""
        said = "\n".join(words[-LAST_WORDS:]) or "it said nothing"
        raise EmoExportError(f"{self.label}: its process ended {how}\n{said}")


def hangs(label: str, timeout: float) -> str:
    """What to say of an engine that was ended."""
    return (
        f"{label}: its engine did not answer for {timeout:g} seconds and was ended; is the file "
        "damaged, or the machine slow? --timeout gives it more"
    )


def memory_of(folder: Path) -> Memory | None:
    """Memory of a process; None where the system does not tell, or the process is gone."""
    rollup = sizes(folder / "smaps_rollup")
    peak = sizes(folder / "status").get("VmHWM")
    if peak is None or "Anonymous" not in rollup:
        return None
    return Memory(rollup["Anonymous"], rollup["Pss_File"], peak)


def busy_seconds() -> float | None:
    """CPU time that the whole machine has used since it started, time stolen from it included."""
    try:
        fields = (PROC / "stat").read_text().split("\n", 1)[0].split()
    except OSError:
        return None
    user, nice, system, _, _, irq, softirq, steal = map(int, fields[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
