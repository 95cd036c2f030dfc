"""The program itself: what a crash of an engine, and signals to its parent alone, come to."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from emo_export.base.process_memory import descendants
from tests.kit.bad_gguf import rewrite

PROGRAM = [sys.executable, "-m", "emo_export"]


def test_an_engine_that_crashes_is_a_refusal(package: Path, tmp_path: Path) -> None:
    """The file passes our checks; a token that its vocabulary has twice ends llama.cpp."""
    (model,) = package.glob("*.gguf")
    tokens = [f"t{i}" for i in range(511)]
    rewrite(model, tmp_path / "bad.gguf", {"tokenizer.ggml.tokens": [*tokens, tokens[0]]})
    line = [*PROGRAM, "run", str(tmp_path / "bad.gguf"), "hello"]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "GGML_ASSERT" in done.stderr and "ended by SIGABRT" in done.stderr
    assert done.stdout == ""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_a_signal_to_the_parent_ends_both(
    number: signal.Signals, package: Path, tmp_path: Path
) -> None:
    line = [*PROGRAM, "run", str(package), "-p", "-"]  # which waits for its prompt
    process = subprocess.Popen(line, stdin=subprocess.PIPE, start_new_session=True)
    while not (children := [pid for pid in descendants(process.pid) if pid != process.pid]):
        time.sleep(0.01)
    time.sleep(0.5)  # until it reads
    os.kill(process.pid, number)
    assert process.wait(20) == (-number if number == signal.SIGKILL else 130)
    ends = time.monotonic() + 20
    while any(Path("/proc", str(pid)).exists() for pid in children):
        assert time.monotonic() < ends
        time.sleep(0.01)


@pytest.mark.slow
def test_a_failing_command_keeps_its_code(tmp_path: Path) -> None:
    assert subprocess.run([*PROGRAM, "run", str(tmp_path), "x"], check=False).returncode == 2
    assert subprocess.run([*PROGRAM, "run", "--help"], check=False).returncode == 0
    closed = subprocess.run(
        ["sh", "-c", f'exec "{sys.executable}" -m emo_export run "$0" x <&- >&- 2>&-', tmp_path],
        check=False,
    )
    assert closed.returncode == 2
