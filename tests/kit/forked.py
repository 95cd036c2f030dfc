"""The command line in processes of their own that begin with everything imported."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from pathlib import Path

from tests.kit.command import exit_code_of

# A fork of a process with no threads: what the command imports otherwise takes it two seconds.
FORKS = multiprocessing.get_context("forkserver")
_USED = ("cli.export", "converters.gguf.writer", "converters.onnx.writer", "reference.calibrate")
FORKS.set_forkserver_preload([__name__, *(f"emo_export.{name}" for name in _USED)])


def run_command(words: list[str], kill_after: float | None = None) -> tuple[int, str]:
    """Exit code (of a killed process, minus SIGKILL) and what went to stderr.

    The process is killed after `kill_after` seconds, if it has not ended by then.
    """
    with tempfile.TemporaryDirectory() as folder:
        errors = Path(folder) / "stderr"
        process = FORKS.Process(target=_run, args=(words, errors))
        process.start()
        process.join(kill_after)
        process.kill()
        process.join()
        told = errors.read_text("utf-8") if errors.exists() else ""
        code = process.exitcode
    assert code is not None
    return code, told


def _run(words: list[str], errors: Path) -> None:
    with errors.open("wb") as file:
        os.dup2(file.fileno(), 2)
    raise SystemExit(exit_code_of(*words))
