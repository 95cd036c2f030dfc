"""Peak memory of an export beyond its imports, beside three expert stacks of one layer.

    python -m tests.bench.memory [--hidden 1024 --width 512 --layers 4 --experts 64]

A child process warms up on a small export (libraries and their kernels are then in memory), resets
its peak, exports the synthetic checkpoint and reports the peak of resident memory above the start.
The checkpoint's page cache is not the process's memory: it is read with plain reads.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import click

from tests.bench.synthetic import Size, write_checkpoint

CHILD = "tests.bench.memory_child"


@click.command()
@click.option("--hidden", default=1024, show_default=True)
@click.option("--width", default=512, show_default=True)
@click.option("--layers", default=4, show_default=True)
@click.option("--experts", default=64, show_default=True)
@click.option("--vocab", default=8192, show_default=True)
@click.option("--to", "specs", multiple=True, default=("gguf:q4_0", "onnx:int4"), show_default=True)
@click.option("--json", "as_json", is_flag=True)
def main(
    hidden: int,
    width: int,
    layers: int,
    experts: int,
    vocab: int,
    specs: tuple[str, ...],
    as_json: bool,
) -> None:
    """Measure one export; exit 1 when the peak is not under three expert stacks."""
    size = Size(hidden, width, layers, experts, vocab)
    with tempfile.TemporaryDirectory(prefix="emo-export-memory-") as name:
        folder = Path(name)
        source = write_checkpoint(folder / "checkpoint", size)
        command = [sys.executable, "-m", CHILD, str(folder), *specs]
        found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    found |= {"source_bytes": source, "limit_bytes": 3 * size.stack_bytes}
    found["passed"] = found["peak_bytes"] < found["limit_bytes"]
    if as_json:
        click.echo(json.dumps(found))
    else:
        click.echo(
            f"source {source / 1e6:.0f} MB -> {', '.join(specs)} in {found['seconds']:.1f} s\n"
            f"resident after imports and warm-up  {found['start_bytes'] / 1e6:8.1f} MB\n"
            f"peak beyond it                      {found['peak_bytes'] / 1e6:8.1f} MB\n"
            f"  of which anonymous                {found['anonymous_bytes'] / 1e6:8.1f} MB\n"
            f"limit: 3 expert stacks              {found['limit_bytes'] / 1e6:8.1f} MB\n"
            f"{'under' if found['passed'] else 'OVER'} the limit, "
            f"{found['peak_bytes'] / found['limit_bytes']:.2f} of it"
        )
    sys.exit(0 if found["passed"] else 1)


class AnonymousPeak:
    """Samples the anonymous memory of this process in a thread."""

    def __init__(self) -> None:
        self.peak = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def _sample(self) -> None:
        while not self._stop.is_set():
            self.peak = max(self.peak, status_bytes("RssAnon"))
            time.sleep(0.005)

    def __enter__(self) -> AnonymousPeak:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def status_bytes(key: str) -> int:
    """A field of /proc/self/status, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise LookupError(key)


if __name__ == "__main__":
    main()
