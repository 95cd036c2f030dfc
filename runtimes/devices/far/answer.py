"""How a module that runs on a device answers: one JSON object, the last line of stdout."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from typing import Any

from emo_export.errors import EmoExportError


def answer(make: Callable[[], dict[str, Any]], timeout: float = 0) -> int:
    """Print what `make` returns, or the EmoExportError it raises; answers the exit code.

    After `timeout` seconds (0: never) SIGALRM ends the process, also inside an engine.
    """
    signal.setitimer(signal.ITIMER_REAL, timeout)
    # What a library writes to stdout must not come before the answer.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    code = 0
    try:
        found = make()
    except EmoExportError as error:
        code = error.exit_code
        found = {"error": str(error), "exit_code": code}
    with answers:
        answers.write(json.dumps(found) + "\n")
    return code
