"""Long runs in one process: exports, validations, tokens; what stays behind. And shared weights.

    python -m tests.bench.endurance

Exports and validations of a small checkpoint in a loop, then 10,000 tokens of each engine: memory,
open files, threads, child processes and entries of TMPDIR before and after. Of memory, what malloc
has given out and not got back (glibc's mallinfo2), by its slope over the second half, when caches
are filled: that is what leaks. Resident memory stands beside it; it moves with how the heap falls
apart. Then several processes that run one package at once: mapped weights count once, and they make
one prepacked copy between them. Exit 1 where something grows.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np

from emo_export import export, load, validate
from emo_export.base.process_memory import descendants, sizes
from emo_export.exporting.steps import QUIET
from emo_export.jobs.export import export_checkpoint
from emo_export.jobs.options import ExportOptions
from emo_export.model.checkpoint import Checkpoint
from emo_export.model.rounding import Rounding
from emo_export.selection.keep import Keep, Selection
from emo_export.selection.method import Method
from tests.kit.paths import GOLDEN, NANO

TARGETS = ["gguf:q4_0", "onnx:int4"]
PROMPT = 16
COLUMNS = ("loop", "times", "MB at the middle", "MB at the end", "bytes kept by each", "files")
COLUMNS += ("threads", "children", "in TMPDIR")
RESIDENT = 1.05  # of resident memory at the middle, at the end at most
SHARING = ("processes", "package", "MB on disk", "MB of files, all", "MB anonymous, each", "copies")


Told = tuple[list[str], bool]
"""Cells of a table, and whether all is well."""


@dataclass(frozen=True)
class Look:
    """At this process: anonymous resident bytes, those of malloc, open files, threads, children,
    entries of TMPDIR.
    """

    resident: int
    kept: int
    files: int
    threads: int
    children: int
    temporary: int


def look(tmp: Path) -> Look:
    """Now."""
    gc.collect()
    resident = sizes(Path("/proc/self/status"))["RssAnon"]
    files = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - counts what it opens itself, too
    threads, children = threading.active_count(), len(descendants(os.getpid()))
    return Look(resident, kept(), files, threads, children, len(list(tmp.iterdir())))


class _MallInfo(ctypes.Structure):
    """`struct mallinfo2` of malloc.h, summed over all arenas."""

    _NAMES = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = tuple((name, ctypes.c_size_t) for name in _NAMES.split())


def kept() -> int:
    """Bytes that malloc has given out."""
    ask = ctypes.CDLL(None).mallinfo2
    ask.restype = _MallInfo
    found = ask()
    return int(found.uordblks + found.hblkhd)


def looped(title: str, times: int, work: Callable[[], object], tmp: Path, limit: int) -> Told:
    """Do it so often -> cells of the table, and whether nothing grew; memory by `limit` bytes."""
    looks = []
    for number in range(times):
        work()
        looks.append(look(tmp))
        if (number + 1) % max(1, times // 10) == 0:
            click.echo(f"{title}: {number + 1}/{times}, {looks[-1]}", err=True)
    half = looks[times // 2 :]
    middle, last = half[0], half[-1]
    held = np.array([each.kept for each in half], np.float64)
    slope = float(np.polyfit(np.arange(len(held)), held, 1)[0]) if len(held) > 1 else 0.0
    grown = (last.files, last.threads, last.children, last.temporary)
    steady = grown == (middle.files, middle.threads, middle.children, middle.temporary)
    cells = [title, str(times), f"{middle.resident / 1e6:.1f}"]
    cells += [f"{last.resident / 1e6:.1f}"]
    cells += [f"{slope:+.0f}", *map(str, grown)]
    steady &= last.resident <= RESIDENT * middle.resident
    return cells, steady and slope <= limit and not last.children and not last.temporary


def loops(work: Path, exports: int, validations: int, tokens: int, limit: int) -> Iterator[Told]:
    """Every loop, in this process."""
    tmp, out, text = work / "tmp", work / "out", work / "text.txt"
    text.write_text("def mean(values):\n    return sum(values) / len(values)\n" * 20, "utf-8")
    options = ExportOptions(
        heldout=(text,),
        heldout_tokens=64,
        calibration=(text,),
        calibration_tokens=256,
        selection=Selection(Keep.parse("6"), Method.ROUTER),
        rounding=Rounding.WEIGHTED,
        overwrite=True,
    )

    def once() -> None:
        export_checkpoint(Checkpoint.open(GOLDEN / "base"), out, TARGETS, options, QUIET)

    yield looped("export --overwrite, to " + " and ".join(TARGETS), exports, once, tmp, limit)
    yield looped("validate", validations, lambda: validate(out), tmp, limit)
    for target in TARGETS:
        yield running(work / "nano", target, tokens, tmp, limit)


def running(package: Path, target: str, tokens: int, tmp: Path, limit: int) -> Told:
    """So many tokens of an engine, as many prompts as its context needs."""
    with load(package, target) as model:
        runtime, rng = model.runtime, np.random.default_rng(0)
        written = runtime.context_length - PROMPT

        def fill() -> None:
            runtime.reset()
            ids = rng.integers(0, runtime.vocab_size, PROMPT)
            for _ in range(written):
                logits = runtime.forward(ids, last=True)
                ids = np.array([logits[-1].argmax()], np.int64)

        title = f"{written} tokens of {target}, a whole context"
        return looped(title, max(2, -(-tokens // written)), fill, tmp, limit)


def shared(package: Path, cache: Path, processes: int, prepacked: bool) -> Told:
    """So many processes that run a package at once -> cells, and whether they share it."""
    place = str(cache) if prepacked else "-"
    command = [sys.executable, "-m", "tests.bench.endurance_child", str(package), place]
    begun = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(processes)
    ]
    told = []
    try:
        for process in begun:  # all have opened and run it
            assert process.stdout is not None and process.stdin is not None
            assert process.stdout.readline() == "ready\n"
        for process in begun:
            assert process.stdout is not None and process.stdin is not None
            process.stdin.write("tell\n")
            process.stdin.flush()
            told.append(json.loads(process.stdout.readline()))
    finally:
        for process in begun:
            process.kill()
            process.wait()
    weights = told[0]["bytes"]
    files = sum(one["file"] for one in told)
    copies = len([path for path in cache.glob("[!.]*") if path.is_dir()])
    cells = [str(processes), package.name + (" with a prepacked copy" if prepacked else "")]
    cells += [f"{weights / 1e6:.1f}", f"{files / 1e6:.1f}"]
    cells += [f"{max(one['anonymous'] for one in told) / 1e6:.1f}", str(copies)]
    return cells, files <= 1.1 * weights and copies == int(prepacked)


def sharings(work: Path) -> Iterator[Told]:
    """One process and four, of both engines."""
    nano = work / "nano"
    places = (
        (nano / "model-Q4_0.gguf", False),
        (nano / "onnx-int4", False),
        (nano / "onnx-int4", True),
    )
    for package, prepacked in places:
        for processes in (1, 4):
            cache = work / f"cache-{package.name}-{prepacked}-{processes}"
            yield shared(package, cache, processes, prepacked)


def shown(title: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """As a table."""
    for cells in (title, *rows):
        click.echo("| " + " | ".join(cells) + " |")


@click.command()
@click.option("--exports", default=200, show_default=True)
@click.option("--validations", default=200, show_default=True)
@click.option("--tokens", default=10_000, show_default=True, help="Of each engine.")
@click.option("--limit", default=20_000, show_default=True, help="Bytes each, of memory.")
def main(exports: int, validations: int, tokens: int, limit: int) -> None:
    """Run everything, and print what grew."""
    with tempfile.TemporaryDirectory(prefix="emo-endurance-") as name:
        work = Path(name)
        (work / "tmp").mkdir()
        os.environ["TMPDIR"], tempfile.tempdir = str(work / "tmp"), None
        export(NANO, work / "nano", TARGETS, golden=False)
        found = list(loops(work, exports, validations, tokens, limit))
        together = list(sharings(work))
        tempfile.tempdir = None
    shown(COLUMNS, [cells for cells, _ in found])
    click.echo()
    shown(SHARING, [cells for cells, _ in together])
    bad = [cells[0] for cells, steady in (*found, *together) if not steady]
    if bad:
        click.echo(f"grew, or not shared: {'; '.join(bad)}", err=True)
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
