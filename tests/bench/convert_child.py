"""The measured process of tests.bench.convert: converts one type, reports time, memory and disk."""

from __future__ import annotations

import ctypes
import gc
import json
import sys
import tempfile
import threading
import time
from pathlib import Path

from rich.console import Console

from emo_export.cli.export import run_export
from emo_export.jobs.options import ExportOptions
from tests.bench.memory import status_bytes
from tests.kit.paths import GOLDEN


class DiskPeak:
    """Samples the bytes under some folders in a thread."""

    def __init__(self, folders: list[Path]) -> None:
        self._folders, self.peak = folders, 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def bytes(self) -> int:
        """Blocks in use of every file under the folders, now."""
        total = 0
        for folder in self._folders:
            for path in folder.rglob("*"):
                try:
                    total += 512 * path.lstat().st_blocks if path.is_file() else 0
                except OSError:  # gone in the meantime
                    continue
        return total

    def _sample(self) -> None:
        while not self._stop.wait(0.25):
            self.peak = max(self.peak, self.bytes())

    def __enter__(self) -> DiskPeak:
        self.before = self.bytes()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def export(source: Path, out: Path, type_name: str) -> None:
    options = ExportOptions(golden=False, overwrite=True)
    run_export(str(source), out, [f"gguf:{type_name}"], options, Console(stderr=True))


def main() -> None:
    source, out, type_name = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    with tempfile.TemporaryDirectory() as name:
        export(GOLDEN / "base", Path(name) / "warm-up", type_name)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    start, cpu, began = status_bytes("VmRSS"), time.process_time(), time.perf_counter()
    with DiskPeak([out.parent, Path(tempfile.gettempdir())]) as disk:
        export(source, out, type_name)
    seconds = time.perf_counter() - began
    written = sum(path.stat().st_size for path in out.iterdir())
    print(
        json.dumps(
            {
                "seconds": seconds,
                "cpu": time.process_time() - cpu,
                "peak_bytes": status_bytes("VmHWM") - start,
                "extra_disk_bytes": max(0, disk.peak - disk.before - written),
            }
        )
    )


if __name__ == "__main__":
    main()
