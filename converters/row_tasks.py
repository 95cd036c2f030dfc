"""Rows of a matrix, shared among the cores by code that lets go of the interpreter's lock."""

from __future__ import annotations

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from emo_export.base.threads import physical_cores

TASK_BYTES = 1 << 20
"""Rows go to a thread in pieces of about this size in float32, which stay in its core's cache."""


@functools.cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(physical_cores(), thread_name_prefix="rows")


def spread(work: Callable[[int, int], None], rows: int, cols: int) -> None:
    """Run `work(start, stop)` over all rows, on all cores where there is enough to do."""
    step = max(1, TASK_BYTES // (4 * cols))
    spans = [(start, min(start + step, rows)) for start in range(0, rows, step)]
    if len(spans) == 1:
        work(*spans[0])
        return
    list(_threads().map(lambda span: work(*span), spans))  # waits, and raises what a task raised
