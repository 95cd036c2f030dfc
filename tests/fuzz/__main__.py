"""Fuzz the readers of files from strangers, guided by coverage.

    python -m tests.fuzz [READER...] [--runs N] [--keep] [--json]

Each reader gets N executions (default 60 000) from its corpus in tests/fuzz/corpus/, in a process
whose memory and time are limited. Prints executions, seconds, memory over that before the first and
crashes; exits 1 when there was one, with its input in fuzz-crashes/. `--keep` adds to the corpus
what reached more code, and drops what doesn't. Needs the extra `fuzz`.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.fuzz.readers import CORPUS, HANG_SECONDS, MEMORY, READERS
from tests.kit.paths import ROOT

CRASHES = ROOT / "fuzz-crashes"
MOST_KEPT = 60  # inputs of a reader
_STAT = re.compile(r"stat::(\w+):\s*(\d+)")


@dataclass(frozen=True)
class Run:
    """Figures of one reader; `megabytes` is the most memory over that before the first input."""

    reader: str
    executions: int
    seconds: float
    slowest_ms: float
    megabytes: int
    coverage: int
    crashes: int


def fuzz(name: str, runs: int, keep: bool) -> Run:
    """Run one reader."""
    reader = READERS[name]
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as scratch:
        found, place, result = (Path(scratch) / part for part in ("found", "place", "result"))
        found.mkdir()
        CRASHES.mkdir(exist_ok=True)
        flags = [
            f"-runs={runs}",
            f"-max_len={reader.longest}",
            f"-timeout={HANG_SECONDS}",
            f"-rss_limit_mb={1000 + (MEMORY >> 20)}",
            "-print_final_stats=1",
            "-verbosity=1",
            f"-artifact_prefix={CRASHES}/{name}-",
        ]
        command = [sys.executable, "-m", "tests.fuzz.child", name, str(place), str(result)]
        start = time.perf_counter()
        done = subprocess.run(
            [*command, *flags, str(found), str(CORPUS / name)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            errors="replace",
        )
        seconds = time.perf_counter() - start
        stats = {key: int(value) for key, value in _STAT.findall(done.stderr)}
        covered = re.findall(r"\bcov: (\d+)", done.stderr)
        if done.returncode or "number_of_executed_units" not in stats:
            print(done.stdout[-3000:], done.stderr[-6000:], sep="\n", file=sys.stderr)
            return Run(name, stats.get("number_of_executed_units", 0), seconds, 0, 0, 0, 1)
        told = json.loads(result.read_text("ascii"))
        if keep:
            _keep(name, [*command, f"-max_len={reader.longest}"], found)
    return Run(
        name,
        stats["number_of_executed_units"],
        round(seconds, 1),
        round(told["slowest"] * 1000, 1),
        max(0, stats["peak_rss_mb"] - (told["resident"] >> 20)),
        int(covered[-1]) if covered else 0,
        0,
    )


def _keep(name: str, command: list[str], found: Path) -> None:
    """Of the old corpus and what was found, the fewest and shortest that reach as much code."""
    merged = found.with_name("merged")
    merged.mkdir()
    folders = [str(merged), str(CORPUS / name), str(found)]
    subprocess.run([*command, "-merge=1", *folders], cwd=ROOT, check=True, capture_output=True)
    best = sorted(merged.iterdir(), key=lambda path: path.stat().st_size)[:MOST_KEPT]
    for path in (CORPUS / name).iterdir():
        if not path.name.startswith("seed"):
            path.unlink()
    for path in best:
        shutil.copyfile(path, CORPUS / name / path.name[:12])


def main() -> None:
    """Print a line for each reader, or all as JSON."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("readers", nargs="*", choices=[[], *READERS], metavar="READER")
    parser.add_argument("--runs", type=int, default=60_000)
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    runs = []
    head = ("reader", "executions", "seconds", "exec/s", "slowest ms", "MB", "crashes")
    print("{:14}{:>12}{:>9}{:>8}{:>12}{:>6}{:>9}".format(*head), file=sys.stderr)
    for name in asked.readers or READERS:
        run = fuzz(name, asked.runs, asked.keep)
        runs.append(run)
        rate = run.executions / run.seconds
        print(
            f"{run.reader:14}{run.executions:12}{run.seconds:9.1f}{rate:8.0f}"
            f"{run.slowest_ms:12.1f}{run.megabytes:6}{run.crashes:9}",
            file=sys.stderr,
        )
    total = sum(run.executions for run in runs)
    print(f"{total} executions, {sum(run.crashes for run in runs)} crashes", file=sys.stderr)
    if asked.json:
        print(json.dumps([asdict(run) for run in runs], indent=2))
    sys.exit(any(run.crashes for run in runs))


if __name__ == "__main__":
    main()
