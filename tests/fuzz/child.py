"""One reader under libFuzzer: ends when it has had its executions, or at the first that goes wrong.

    python -m tests.fuzz.child READER FOLDER RESULT [flags of libFuzzer and folders with a corpus]

Only our own modules are instrumented. RESULT gets, as JSON, the memory before the first execution
and the CPU seconds of the slowest.
"""

from __future__ import annotations

import json
import resource
import shlex
import sys
import time
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["emo_export"]):
    from tests.fuzz.readers import MEMORY, READERS, SECONDS, attempt, kept, lay


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text("ascii").split()[1]) * resource.getpagesize()


def main() -> None:
    """Fuzz until libFuzzer ends the process."""
    name, place, result, *flags = sys.argv[1:]
    reader = READERS[name]
    folder = lay(reader, Path(place))
    attempt(reader, folder, b"")  # what is imported inside functions is no memory of a file
    for content in kept(name)[:3]:
        attempt(reader, folder, content)
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[0])
    # libFuzzer's own tables are some 100 MB of address space, which it may take later.
    limit = pages * resource.getpagesize() + MEMORY + (128 << 20)
    if resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY:  # not so while merging
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    slowest = 0.0
    told = {"resident": _resident(), "slowest": slowest}
    Path(result).write_text(json.dumps(told), "ascii")

    def once(content: bytes) -> None:
        nonlocal slowest
        start = time.process_time()
        attempt(reader, folder, content)
        taken = time.process_time() - start
        if taken > slowest:
            slowest = taken
            Path(result).write_text(json.dumps({**told, "slowest": slowest}), "ascii")
        assert taken < SECONDS, f"{taken:.2f} CPU seconds"

    # To merge a corpus libFuzzer starts its first argument again, with other flags.
    again = Path(result).with_suffix(".sh")
    words = shlex.join([sys.executable, "-m", "tests.fuzz.child", name, place, result])
    again.write_text(f'#!/bin/sh\nexec {words} "$@"\n', "ascii")
    again.chmod(0o755)
    atheris.Setup([str(again), *flags], once)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
