"""The measured process of tests.bench.memory: warms up, resets its peak, exports, reports."""

from __future__ import annotations

import ctypes
import gc
import json
import sys
import time
from pathlib import Path

from rich.console import Console

from emo_export.cli.export import run_export
from emo_export.jobs.options import ExportOptions
from tests.bench.memory import AnonymousPeak, status_bytes
from tests.kit.paths import GOLDEN


def export(source: Path, out: Path, specs: list[str]) -> None:
    run_export(str(source), out, specs, ExportOptions(validate=False), Console(stderr=True))


def main() -> None:
    folder, specs = Path(sys.argv[1]), sys.argv[2:]
    export(GOLDEN / "base", folder / "warm-up", specs)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    start, anonymous = status_bytes("VmRSS"), status_bytes("RssAnon")
    began = time.perf_counter()
    with AnonymousPeak() as sampled:
        export(folder / "checkpoint", folder / "out", specs)
    print(
        json.dumps(
            {
                "start_bytes": start,
                "peak_bytes": status_bytes("VmHWM") - start,
                "anonymous_bytes": sampled.peak - anonymous,
                "seconds": time.perf_counter() - began,
            }
        )
    )


if __name__ == "__main__":
    main()
