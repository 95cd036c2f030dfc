"""The speed of one exported model, measured where it lies: the far side of `bench` on a device.

    python -m emo_export.runtimes.devices.far.on_device_bench PATH [--threads N]
        [--prefill N] [--decode N] [--depth N] [--rounds N]
        [--kv-cache TYPE]

The last line of stdout is one JSON object, everything else goes to stderr.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from emo_export.base.child_process import memory_of
from emo_export.base.process_memory import PROC
from emo_export.errors import EmoExportError
from emo_export.runtimes.devices.far.answer import answer
from emo_export.runtimes.opening import open_runtime
from emo_export.runtimes.timing import read_through, time_decode, time_prefill

VERSION = 1
COUNTS = {"prefill": 128, "decode": 32, "depth": 32, "rounds": 3}


def measure(path: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds to open, tokens per second (medians and all rounds), and bytes of memory.

    `resident` is the kernel's own peak, `anonymous` and `file` are as they are at the end. Raises
    EmoExportError when the engine refuses, or the context is too short.
    """
    read_through(path)  # from here on the disk has no part in it
    start = time.perf_counter()
    runtime = open_runtime(path, arguments.threads, kv_cache=arguments.kv_cache)
    opened = time.perf_counter() - start
    try:
        needed = max(arguments.prefill, arguments.depth + arguments.decode)
        context = runtime.context_length
        if context < needed:
            raise EmoExportError(
                f"--prefill, or --depth with --decode, needs {needed} positions: they exceed the "
                f"context of {context}"
            )
        time_prefill(runtime, arguments.prefill)  # pages and threads
        turns = range(arguments.rounds)
        prefill = [arguments.prefill / time_prefill(runtime, arguments.prefill) for _ in turns]
        seconds = [time_decode(runtime, arguments.decode, arguments.depth) for _ in turns]
        decode = [arguments.decode / each for each in seconds]
        memory = memory_of(PROC / "self")
        return {
            "version": VERSION,
            "path": str(path),
            "load_seconds": opened,
            "prefill_tokens_per_second": median(prefill),
            "decode_tokens_per_second": median(decode),
            "prefill_rounds": prefill,
            "decode_rounds": decode,
            "settings": {key: getattr(arguments, key) for key in COUNTS},
            "engine": dict(runtime.describe()),
            "memory": vars(memory) if memory is not None else None,
        }
    finally:
        runtime.close()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="on_device_bench", description=__doc__)
    parser.add_argument("path", type=Path)
    parser.add_argument("--threads", type=_positive)
    parser.add_argument("--kv-cache")
    for name, default in COUNTS.items():
        parser.add_argument(f"--{name}", type=_positive, default=default)
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


def main(arguments: Sequence[str]) -> int:
    """Measure and answer; the exit code is that of the error, or 0."""
    parsed = _parser().parse_args(arguments)
    return answer(lambda: measure(parsed.path, parsed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
