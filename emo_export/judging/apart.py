"""The verdict on one target from a process of its own: an engine may crash there, or hang.

Engines are native code, and a file that passes all our checks may still end one.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from emo_export.base.child_process import (
    LAST_WORDS,
    TIMEOUT,
    child_command,
    child_environment,
    hangs,
)
from emo_export.base.scratch import Scratch
from emo_export.base.tied import tied
from emo_export.errors import EmoExportError, MissingDependencyError
from emo_export.parity.golden import Golden
from emo_export.parity.result import Crash, Result
from emo_export.spec import Spec

CHILD = "emo_export.judging.child"
SAID = 1 << 16  # bytes of stderr that are looked at


class EngineHangs(EmoExportError):
    """An engine did not answer in time, and was ended."""


def judge_apart(
    spec: Spec,
    path: Path,
    golden: Golden,
    threads: int | None = None,
    kv_cache: str | None = None,
    timeout: float = TIMEOUT,
) -> Result:
    """As `judging.here.judge`.

    `timeout`: the most seconds for opening a model, or for the logits of one text. A crash is a
    result that did not pass. Raises EmoExportError for what `judge` does, and EngineHangs.
    """
    with Scratch("judge") as scratch:  # the child's temporary files go with it, whatever ends it
        place = scratch / "golden.npz"
        golden.save(place, compressed=False)
        asked = {
            "target": str(spec),
            "path": str(path.absolute()),
            "golden": str(place),
            "threads": threads,
            "kv_cache": kv_cache,
        }
        answer, code, said = _answer(asked, scratch, timeout)
    if answer is None:
        words = "\n".join(said.strip().splitlines()[-LAST_WORDS:]) or "it said nothing"
        if code < 0:
            return Result(target=str(spec), crash=Crash(-code, "", words))
        raise EmoExportError(f"{spec}: its process ended with code {code}\n{words}")
    if "error" in answer:
        kind = MissingDependencyError if answer["exit_code"] == 3 else EmoExportError
        raise kind(answer["error"])
    return Result.from_dict(answer["result"], f"the verdict on {spec}")


def _answer(
    asked: dict[str, Any], scratch: Path, timeout: float
) -> tuple[dict[str, Any] | None, int, str]:
    """The last line that a child says, or None; its exit code; what it said on stderr."""
    last: dict[str, Any] = {}
    with _child(asked, scratch) as (process, told, said):
        for line in _lines(told, timeout, asked["target"]):
            last = json.loads(line)
        code = process.wait()
        size = said.seek(0, os.SEEK_END)
        said.seek(max(0, size - SAID))
        words = said.read().decode("utf-8", errors="replace")
    return (last if "error" in last or "result" in last else None), code, words


@contextmanager
def _child(
    asked: dict[str, Any], scratch: Path
) -> Iterator[tuple[subprocess.Popen[bytes], IO[bytes], IO[bytes]]]:
    """A child, its stdout and its stderr; it is ended with the block."""
    with tempfile.TemporaryFile(dir=scratch) as said:
        process = subprocess.Popen(
            child_command(CHILD, json.dumps(asked)),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=said,
            # ggml would have a debugger print where it gave up.
            env={**child_environment(), "TMPDIR": str(scratch), "GGML_NO_BACKTRACE": "1"},
            start_new_session=True,  # Ctrl-C reaches us alone
            preexec_fn=tied(),
        )
        try:
            told = process.stdout
            if told is None:
                raise RuntimeError("a child without stdout")
            with told:
                yield process, told, said
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _lines(told: IO[bytes], timeout: float, label: str) -> Iterator[bytes]:
    """Whole lines, for each of which there is so much time."""
    rest = b""
    while True:
        if not select.select([told], [], [], timeout)[0]:
            raise EngineHangs(hangs(label, timeout))
        part = os.read(told.fileno(), 1 << 16)
        if not part:
            return
        *lines, rest = (rest + part).split(b"\n")
        yield from lines
