"""Running the programs that download, and telling how far they are."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from emo_export.base.tied import tied
from emo_export.base.uninterrupted import SIGNALS
from emo_export.errors import EmoExportError
from emo_export.runtimes.devices.emulated.place import bytes_of

LOOK_SECONDS = 0.25


@dataclass(frozen=True)
class Progress:
    """What a setup tells: sentences, the bytes to fetch (0: no more), bytes as they arrive."""

    on_stage: Callable[[str], None]
    on_total: Callable[[int], None] = lambda nbytes: None
    on_bytes: Callable[[int], None] = lambda nbytes: None


@dataclass(frozen=True)
class Done:
    """How a program ended: exit code (negative: signal) and all that it said."""

    code: int
    out: str
    said: str  # stdout and stderr

    def tail(self, lines: int) -> str:
        """Its last words."""
        return "\n".join(self.said.strip().splitlines()[-lines:])


def run(command: Sequence[str], folder: Path, settings: Mapping[str, str]) -> Done:
    """Run a program to its end in `folder`, where its temporary files go too.

    `settings` are added to the environment. Raises EmoExportError when it can't be started.
    """
    return watched(command, folder, settings, folder, lambda nbytes: None)


def watched(
    command: Sequence[str],
    folder: Path,
    settings: Mapping[str, str],
    growing: Path,
    on_bytes: Callable[[int], None],
) -> Done:
    """Run a program as `run` does, and report the bytes by which the folder `growing` grows."""
    # TMPDIR: apt ignores one that it can't write to, and what is left must go with the folder.
    environment = {**os.environ, "LC_ALL": "C.UTF-8", "TMPDIR": str(folder), **settings}
    with tempfile.TemporaryFile(dir=folder) as out, tempfile.TemporaryFile(dir=folder) as err:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            try:
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=err,
                    cwd=folder,
                    env=environment,
                    start_new_session=True,  # a Ctrl-C is ours alone; we end it and wait
                    preexec_fn=partial(_begin, tied(), before),
                )
            except OSError as error:
                raise EmoExportError(f"{command[0]} can't be started ({error.strerror})") from error
            try:
                # Not before it is known which process an interrupt must end.
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
                _watch(process, growing, on_bytes)
            except BaseException:
                _end(process)
                raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        out.seek(0)
        err.seek(0)
        text = out.read().decode("utf-8", "replace")
        return Done(process.returncode, text, text + err.read().decode("utf-8", "replace"))


def _watch(
    process: subprocess.Popen[bytes], growing: Path, on_bytes: Callable[[int], None]
) -> None:
    before = seen = bytes_of(growing)
    while True:
        try:
            process.wait(LOOK_SECONDS)
        except subprocess.TimeoutExpired:
            now = max(seen, bytes_of(growing))
            on_bytes(now - seen)
            seen = now
            continue
        on_bytes(max(0, bytes_of(growing) - max(seen, before)))
        return


def _begin(tie: Callable[[], None], mask: set[int | signal.Signals]) -> None:
    """In the new process: it goes with its parent, and gets signals as its parent did."""
    tie()
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a program and what it started (apt's methods), which share its session."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
