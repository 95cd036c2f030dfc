"""How many bytes this machine reads from memory in a second, on a number of threads.

    python -m emo_export.bench.bandwidth THREADS BYTES [KERNEL]

One buffer, far larger than the last-level cache, is read in pieces that the threads take in turn;
numpy lets go of the interpreter's lock while it reads. No operation of numpy is the fastest on
every machine (which of them use the widest loads differs by type and by version), so all of
KERNELS read the buffer a few times, and the one with the best median is the measure. The process is
one of its own, since BLAS must keep to the thread that calls it (OPENBLAS_NUM_THREADS and its like
are read when numpy is imported).
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt

from emo_export.base.child_process import child_command, child_environment
from emo_export.base.tied import tied
from emo_export.errors import EmoExportError

Bytes = npt.NDArray[np.uint8]
SYSFS = Path("/sys/devices/system/cpu")
LEAST, CACHES = 256 << 20, 4  # bytes of the buffer, and how often all last-level caches fit in it
UNKNOWN_CACHE = 64 << 20  # where the system does not tell
PIECE = 4 << 20
TRIAL_PASSES, PASSES = 7, 31
UNITS = {"K": 10, "M": 20}
SERIAL_BLAS = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS", "BLIS_NUM_THREADS")

KERNELS: Mapping[str, Callable[[Bytes], Any]] = {
    "dot float32": lambda x: np.dot(x.view(np.float32), x.view(np.float32)),
    "dot float64": lambda x: np.dot(x.view(np.float64), x.view(np.float64)),
    "max int8": lambda x: x.view(np.int8).max(),
    "max int64": lambda x: x.view(np.int64).max(),
    "bitwise_or int64": lambda x: np.bitwise_or.reduce(x.view(np.int64)),
    "add int64": lambda x: np.add.reduce(x.view(np.int64)),
}


@dataclass(frozen=True)
class Bandwidth:
    """Median, least and most GB/s (10^9 bytes) of the passes, and the kernel that read."""

    kernel: str
    gb_per_s: float
    least: float
    most: float


def measure(threads: int, kernel: str = "") -> Bandwidth:
    """Measure in a child process; `kernel` repeats an earlier choice.

    Raises EmoExportError when the process fails (for lack of memory, say).
    """
    command = child_command("emo_export.bench.bandwidth", str(threads), str(buffer_bytes()), kernel)
    environment = child_environment() | dict.fromkeys(SERIAL_BLAS, "1")
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=environment, preexec_fn=tied()
    )
    if done.returncode:
        raise EmoExportError(f"measuring read bandwidth failed: {done.stderr.strip()[-500:]}")
    return Bandwidth(**json.loads(done.stdout))


def buffer_bytes() -> int:
    """Bytes of the buffer that is read."""
    return max(LEAST, CACHES * last_level_caches())


def last_level_caches(sysfs: Path = SYSFS) -> int:
    """Bytes of all last-level caches together: each is told of by every processor that shares it.

    Where the system does not tell, UNKNOWN_CACHE.
    """
    sizes: dict[tuple[str, str], int] = {}
    for folder in sysfs.glob("cpu[0-9]*/cache/index*"):
        level, size, shared = (
            (folder / name).read_text(encoding="ascii").strip() if (folder / name).is_file() else ""
            for name in ("level", "size", "shared_cpu_list")
        )
        if size[:-1].isdecimal() and size[-1] in UNITS:
            sizes[level, shared] = int(size[:-1]) << UNITS[size[-1]]
    last = max((level for level, _ in sizes), default="")
    total = sum(size for (level, _), size in sizes.items() if level == last)
    return total or UNKNOWN_CACHE


def read_passes(pieces: Sequence[Bytes], kernel: str, threads: int, passes: int) -> list[float]:
    """GB/s of each of some passes over all pieces."""
    total = sum(piece.nbytes for piece in pieces)
    return [total / 1e9 / _pass(pieces, KERNELS[kernel], threads) for _ in range(passes)]


def _pass(pieces: Sequence[Bytes], read: Callable[[Bytes], Any], threads: int) -> float:
    """Seconds that the threads take for all pieces; each takes the next one when it is done."""
    queue: Iterator[Bytes] = iter(pieces)
    barrier = threading.Barrier(threads)
    times: list[float] = []

    def work() -> None:
        barrier.wait()
        times.append(time.perf_counter())
        for piece in queue:
            read(piece)
        times.append(time.perf_counter())

    # Daemons: where not all of them can be started, those at the barrier would never end.
    workers = [threading.Thread(target=work, daemon=True) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return max(times) - min(times)


def _measure_here(threads: int, size: int, kernel: str) -> Bandwidth:
    buffer = np.ones(size, np.uint8)  # written, or every page would be the one page of zeros
    pieces = [buffer[at : at + PIECE] for at in range(0, size - PIECE + 1, PIECE)]
    if not kernel:
        trials = {name: read_passes(pieces, name, threads, TRIAL_PASSES) for name in KERNELS}
        kernel = max(trials, key=lambda name: median(trials[name]))
    found = read_passes(pieces, kernel, threads, PASSES)
    return Bandwidth(kernel, median(found), min(found), max(found))


def main(arguments: Sequence[str]) -> None:
    """Measure as the module's text says; one line of JSON on stdout."""
    threads, size, kernel = itertools.islice(itertools.chain(arguments, [""]), 3)
    found = _measure_here(int(threads), int(size), kernel)
    sys.stdout.write(json.dumps(vars(found)) + os.linesep)


if __name__ == "__main__":
    main(sys.argv[1:])
