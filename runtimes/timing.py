"""How long one opened model takes to read and to write; what `bench` asks, here and on a device."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from emo_export.interfaces import Ids, Runtime

SEED = 0
READ = 8 << 20


def time_prefill(runtime: Runtime, tokens: int) -> float:
    """Seconds for a prompt of so many tokens."""
    runtime.reset()
    ids = _ids(runtime, tokens)
    start = time.perf_counter()
    runtime.forward(ids, last=True)
    return time.perf_counter() - start


def time_decode(runtime: Runtime, tokens: int, depth: int) -> float:
    """Seconds for so many tokens one by one, after a prompt of `depth`."""
    runtime.reset()
    ids = _ids(runtime, depth + tokens)
    runtime.forward(ids[:depth], last=True)
    start = time.perf_counter()
    for at in range(depth, depth + tokens):
        runtime.forward(ids[at : at + 1], last=True)
    return time.perf_counter() - start


def read_through(path: Path) -> None:
    """Read a file, or those of a folder, so that they are in the page cache if that has room."""
    files = [path] if path.is_file() else [inner for inner in path.rglob("*") if inner.is_file()]
    buffer = memoryview(bytearray(READ))
    for file in files:
        with file.open("rb", buffering=0) as handle:
            while handle.readinto(buffer):
                pass


def _ids(runtime: Runtime, count: int) -> Ids:
    """The same random tokens every time (count,): each chooses experts of its own."""
    return np.random.default_rng(SEED).integers(0, runtime.vocab_size, count)
