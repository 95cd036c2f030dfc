"""Running a Python module on the far side, for no longer than the connection lasts."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from emo_export.base.tied import tied

LAST = 1 << 16  # bytes of stderr that are brought home
LOOK_SECONDS = 0.05


class ConnectionEnded(Exception):
    """The other side has gone: nobody waits for an answer."""


def run_child(
    command: Sequence[str],
    environment: Mapping[str, str],
    folder: Path,
    is_alone: Callable[[], bool],
) -> dict[str, Any]:
    """Run a command to its end, with its temporary files in `folder`.

    Answers code (negative: the signal that ended it), stdout and the end of stderr. Raises
    ConnectionEnded, with the command ended, as soon as `is_alone` says so; OSError when it can't
    be started.
    """
    with tempfile.TemporaryFile(dir=folder) as out, tempfile.TemporaryFile(dir=folder) as said:
        process = subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=said,
            env=dict(environment),
            cwd=folder,
            start_new_session=True,
            preexec_fn=tied(),
        )
        try:
            while process.poll() is None:
                if is_alone():
                    raise ConnectionEnded
                time.sleep(LOOK_SECONDS)
        finally:
            _end(process)
        out.seek(0)
        size = said.seek(0, os.SEEK_END)
        said.seek(max(0, size - LAST))
        return {
            "code": _signal_or_code(process.returncode),
            "stdout": out.read().decode("utf-8", errors="replace"),
            "stderr": said.read().decode("utf-8", errors="replace"),
        }


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a command and all that it started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _signal_or_code(code: int) -> int:
    """A shell between us and Python tells a signal as 128 + its number."""
    return 128 - code if 128 < code < 128 + signal.NSIG else code
