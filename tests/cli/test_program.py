"""The program itself: what a crash of an engine, and signals to its parent alone, come to."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from emo_export.base.process_memory import descendants
from emo_export.cli.main import cli
from emo_export.cli.program import _in_a_child, _told
from tests.kit.bad_gguf import rewrite
from tests.kit.command import Emo

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


@pytest.mark.slow
def test_a_caller_that_ignores_the_end_of_children_is_told(package: Path) -> None:
    """Ignored by the caller, SIGCHLD never comes, and run waited for ever."""
    line = [*PROGRAM, "run", str(package), "hello", "-n", "1"]

    def ignore() -> None:
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)

    assert subprocess.run(line, preexec_fn=ignore, timeout=60, check=False).returncode == 0


@pytest.mark.parametrize(
    ("code", "expected", "said"),
    [
        (1, 1, ""),
        (-signal.SIGHUP, 130, "interrupted"),  # before the child listened
        (-signal.SIGKILL, 2, "ended by SIGKILL, as it is when memory runs out"),
        (-signal.SIGSEGV, 2, "ended by SIGSEGV; a damaged file"),
    ],
)
def test_the_end_of_a_child(
    code: int, expected: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _told(code) == expected
    assert said in capsys.readouterr().err


def test_no_process_to_be_had_is_a_refusal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fork() -> int:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(os, "fork", fork)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    try:
        with pytest.raises(SystemExit, match="2"):
            _in_a_child()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    assert "no process can be started for the engine" in capsys.readouterr().err


def test_an_interrupt_that_python_dropped_comes_again() -> None:
    """In a process of its own: weak references' calls drop what they raise."""
    code = (
        "import signal, sys, time, weakref\n"
        "from emo_export.cli import main\n"
        "class Gone: pass\n"
        "def work(**options):\n"
        "    gone = Gone()\n"
        "    told = weakref.ref(gone, lambda ref: signal.raise_signal(signal.SIGINT))\n"
        "    del gone\n"
        "    time.sleep(20)\n"
        "main.cli.main = work\n"
        "main.main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=15, text=True)
    assert (done.returncode, done.stderr) == (130, "interrupted\n")


def test_no_memory_is_no_bug(monkeypatch: pytest.MonkeyPatch, emo: Emo) -> None:
    def work(**options: object) -> None:
        raise MemoryError

    monkeypatch.setattr(cli, "main", work)
    done = emo("inspect")
    assert done.code == 2 and done.err.startswith("error: there is not enough memory")
