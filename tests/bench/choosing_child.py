"""The measured process of tests.bench.choosing: an export, with time, memory and bytes by stage.

Bytes are those of the kernel's counters of read and write calls, so that what the pipeline says of
its reading stands beside what the process read.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from emo_export.exporting.export import Exported
from emo_export.exporting.package import ALONE
from emo_export.exporting.steps import Steps
from emo_export.jobs.export import export_checkpoint
from emo_export.jobs.options import ExportOptions
from emo_export.model.checkpoint import Checkpoint
from emo_export.model.names import slots
from emo_export.selection.keep import Keep, Selection
from emo_export.selection.method import Method
from tests.bench.choosing import PASS
from tests.bench.memory import status_bytes
from tests.kit.paths import NANO

SAMPLE_SECONDS = 0.01


@dataclass
class Stage:
    """Seconds, those of all cores, bytes of read and write calls, the most memory seen in it."""

    name: str
    seconds: float = 0.0
    cpu: float = 0.0
    read: int = 0
    written: int = 0
    anonymous: int = 0
    resident: int = 0


class Stages:
    """Stages that follow each other, whose memory a thread looks at."""

    def __init__(self, first: str) -> None:
        self.done: list[Stage] = []
        self._began, self._cpu, self._io = time.perf_counter(), time.process_time(), _calls()
        self._now = Stage(first)
        self._stop = threading.Event()

    def begin(self, name: str) -> None:
        """The stage before has ended."""
        at, cpu, io = time.perf_counter(), time.process_time(), _calls()
        self._now.seconds, self._now.cpu = at - self._began, cpu - self._cpu
        self._now.read, self._now.written = (
            new - old for new, old in zip(io, self._io, strict=True)
        )
        self.done.append(self._now)
        self._began, self._cpu, self._io, self._now = at, cpu, io, Stage(name)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Look at the memory until this ends, and the last stage with it."""
        thread = threading.Thread(target=self._sample, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join()
            self.begin("")

    def _sample(self) -> None:
        while not self._stop.wait(SAMPLE_SECONDS):
            now = self._now
            now.anonymous = max(now.anonymous, status_bytes("RssAnon"))
            now.resident = max(now.resident, status_bytes("VmRSS"))


def _calls() -> tuple[int, int]:
    """Bytes that this process has read and written by calls, from the page cache or not."""
    lines = Path("/proc/self/io").read_text().splitlines()
    found = dict(line.split(": ") for line in lines)
    return int(found["rchar"]), int(found["wchar"])


def expert_reads(checkpoint: Checkpoint, made: Exported) -> dict[str, dict[str, float]]:
    """Of kept and of dropped experts: their bytes, those read, and the most reads of one."""
    sizes: dict[tuple[int, int], int] = {}
    for slot in slots(checkpoint.config):
        if slot.expert >= 0:
            place = (slot.layer, slot.expert)
            sizes[place] = sizes.get(place, 0) + checkpoint.at(slot).nbytes
    chosen = made.manifest.kept or []
    kept = {(layer, expert) for layer, experts in enumerate(chosen) for expert in experts}
    found = {}
    for name, places in (("kept", kept), ("dropped", sizes.keys() - kept)):
        read = {place: made.traffic.experts.get(place, 0) for place in places}
        found[name] = {
            "bytes": sum(sizes[place] for place in places),
            "read": sum(read.values()),
            "most": max((n / sizes[place] for place, n in read.items()), default=0.0),
        }
    return found


def main() -> None:
    asked: dict[str, Any] = json.loads(sys.argv[1])
    stages = Stages("headers and texts")
    steps = Steps(
        lambda targets, nbytes: stages.begin(PASS),
        lambda slot, nbytes: None,
        stages.begin,
    )
    options = ExportOptions(
        heldout=(NANO / "heldout",) if asked["golden"] else (),
        heldout_tokens=asked["heldout_tokens"],
        calibration=(NANO / "calibration",),
        calibration_tokens=asked["tokens"],
        selection=Selection(Keep.parse(asked["keep"]), Method(asked["method"])),
        golden=asked["golden"],
        validate=False,
    )
    with stages.watched():
        checkpoint = Checkpoint.open(Path(asked["source"]))
        made = export_checkpoint(checkpoint, Path(asked["out"]), asked["specs"], options, steps)[
            ALONE
        ]
    print(
        json.dumps(
            {
                "stages": [asdict(stage) for stage in stages.done],
                "source_bytes": checkpoint.nbytes,
                "read": made.traffic.read,
                "experts": expert_reads(checkpoint, made),
                "made_bytes": sum(entry.bytes for entry in made.manifest.files),
                "peak_bytes": status_bytes("VmHWM"),
            }
        )
    )


if __name__ == "__main__":
    main()
