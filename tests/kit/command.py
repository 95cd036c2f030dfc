"""Calling the command line inside the test process."""

from __future__ import annotations

import contextlib
import io
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass

from emo_export.base.uninterrupted import SIGNALS
from emo_export.cli.main import main


@dataclass
class Done:
    code: int
    out: str
    err: str


Emo = Callable[..., Done]


NOT_FAILED = (0, 4)
"""Of a judged export of an untrained checkpoint, whose few tokens may not tell what it costs."""


def exit_code_of(*arguments: object) -> int:
    """Run a command; how this process takes signals is afterwards as it was."""
    argv, handlers = sys.argv, {number: signal.getsignal(number) for number in SIGNALS}
    unraisable = sys.unraisablehook
    sys.argv = ["emo-export", *map(str, arguments)]
    try:
        main()
    except SystemExit as stop:
        return int(stop.code or 0)
    finally:
        sys.argv = argv
        sys.unraisablehook = unraisable
        for number, handler in handlers.items():
            signal.signal(number, handler)
    raise AssertionError("main returned")


def run_here(*arguments: object) -> Done:
    """Run a command where no fixture captures: what Python wrote to stdout and stderr."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = exit_code_of(*arguments)
    return Done(code, out.getvalue(), err.getvalue())
