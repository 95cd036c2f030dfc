"""Moments in which an interrupt would leave something behind that nobody knows of."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)
"""Those that end a command. Windows has no SIGHUP."""


@contextmanager
def uninterrupted() -> Iterator[None]:
    """What asks the process to end is heard after the block, which should be short.

    Python runs handlers in the main thread alone; elsewhere there is nothing to put off.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[tuple[int, FrameType | None]] = []

    def put_off(number: int, frame: FrameType | None) -> None:
        came.append((number, frame))

    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    ours = {number: handler for number, handler in handlers.items() if callable(handler)}
    try:
        for number in ours:
            signal.signal(number, put_off)
        yield
    finally:
        for number, handler in ours.items():
            signal.signal(number, handler)
        for number, frame in came:
            ours[number](number, frame)
