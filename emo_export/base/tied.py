"""A child process that ends when the process that started it does, however that was."""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Callable

PR_SET_PDEATHSIG = 1  # linux/prctl.h; it lasts through exec, and a fork does not inherit it


def tied() -> Callable[[], None]:
    """For `preexec_fn` of subprocess: the kernel kills the child when its parent has ended.

    More exactly when the thread that starts it ends, which must wait for it. Does nothing where
    there is no prctl.
    """
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    parent = os.getpid()

    def tie() -> None:
        if prctl is None:
            return
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # it ended before it could be told
            os.kill(os.getpid(), signal.SIGKILL)

    return tie
