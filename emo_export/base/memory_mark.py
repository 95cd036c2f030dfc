"""Moments at which a process lets whoever samples its memory look: before and after a model opens.

Under an emulator a process can't tell what it holds itself, and between two samples a small model
comes and goes. So it leaves a file and waits until the one who looks has removed it.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

MARK = "EMO_EXPORT_MEMORY_MARK"
"""Environment variable: the file to leave. Without it nothing happens."""
PATIENCE = 10.0  # seconds; then nobody is looking
STEP = 0.005


def wait_to_be_seen() -> None:
    """Wait until our memory has been looked at, where somebody does.

    The first moment is before a model is opened: engines call this when they are loaded and the
    model is not.
    """
    name = os.environ.get(MARK, "")
    if not name:
        return
    mark = Path(name)
    deadline = time.monotonic() + PATIENCE
    try:
        mark.touch()
        while mark.exists():
            if time.monotonic() > deadline:
                raise TimeoutError
            time.sleep(STEP)
    except OSError:  # TimeoutError is one: who asked has gone
        del os.environ[MARK]
