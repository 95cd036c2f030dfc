"""The command line in forked processes in which a call that writes fails, or is the last.

The calls are counted by a library that is preloaded (faults.c), so that every write, flush, rename
and removal of a command can be the one, whatever made it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.kit.command import exit_code_of
from tests.kit.forked import FORKS

SOURCE = Path(__file__).with_name("faults.c")


@dataclass(frozen=True)
class Fault:
    """What happens: at the `at`-th call that changes a file, or after so many seconds.

    `error` is an errno, which all later calls give too; `signal` reaches the process once.
    """

    at: int = 0
    seconds: float | None = None
    error: int = 0
    signal: int = 0


@dataclass(frozen=True)
class Ended:
    """Exit code (of a killed process minus the signal), stderr, and how many calls there were."""

    code: int
    said: str
    calls: int


class Preloaded:
    """Runs commands in processes of their own; `work` is a folder for the library and logs."""

    def __init__(self, work: Path) -> None:
        """Raises FileNotFoundError without gcc; to be made before any process is forked."""
        library = work / "faults.so"
        command = ["gcc", "-shared", "-fPIC", "-O1", "-o", str(library), str(SOURCE), "-ldl"]
        subprocess.run(command, check=True)
        self._work = work
        before = os.environ.get("LD_PRELOAD")
        os.environ["LD_PRELOAD"] = str(library)
        try:
            self.run(["--version"], work, work)  # the process that others are forked from begins
        finally:
            del os.environ["LD_PRELOAD"]
            if before is not None:
                os.environ["LD_PRELOAD"] = before

    def run(
        self, words: Sequence[str], below: Path, tmp: Path, fault: Fault | None = None
    ) -> Ended:
        """Run a command whose TMPDIR is `tmp`; changes below a folder count."""
        errors, counted = self._work / "stderr", self._work / "calls"
        for file in (errors, counted):
            file.unlink(missing_ok=True)
        fault = fault or Fault()
        process = FORKS.Process(target=_run, args=(list(words), below, tmp, fault, errors, counted))
        process.start()
        process.join(fault.seconds)
        if process.is_alive() and process.pid is not None:
            os.kill(process.pid, fault.signal or signal.SIGKILL)
        process.join()
        code = process.exitcode
        assert code is not None
        said = errors.read_text("utf-8") if errors.exists() else ""
        return Ended(code, said, int(counted.read_text()) if counted.exists() else 0)


def _run(
    words: list[str], below: Path, tmp: Path, fault: Fault, errors: Path, counted: Path
) -> None:
    with errors.open("wb") as file:
        os.dup2(file.fileno(), 2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    for number in (signal.SIGINT, signal.SIGTERM):  # who starts us may have them ignored
        signal.signal(number, signal.default_int_handler)
    os.environ["TMPDIR"] = str(tmp)
    tempfile.tempdir = None
    library = ctypes.CDLL(None)
    library.faults_count.restype = ctypes.c_long
    at = 0 if fault.seconds is not None else fault.at
    library.faults_arm(os.fsencode(f"{below}/"), ctypes.c_long(at), fault.error, fault.signal)
    code = exit_code_of(*words)
    calls = library.faults_count()
    library.faults_arm(b"", ctypes.c_long(0), 0, 0)
    counted.write_text(str(calls))
    raise SystemExit(code)
