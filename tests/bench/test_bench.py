"""What is made of measurements: medians, fractions of the bandwidth, what fits in memory."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from emo_export.base.child_process import Child, Memory, busy_seconds, child_environment
from emo_export.bench.bandwidth import (
    KERNELS,
    SERIAL_BLAS,
    UNKNOWN_CACHE,
    Bandwidth,
    last_level_caches,
    measure,
    read_passes,
)
from emo_export.bench.bench import Report, Result, Run, Settings, Subject, figures, fit_together
from emo_export.bench.view import render
from emo_export.cli.bench import CHILD
from emo_export.errors import EmoExportError
from emo_export.files.read_per_token import PerToken
from tests.kit.exporting import exported
from tests.kit.paths import NANO

SETTINGS = Settings(prefill=100, decode=9, depth=10, rounds=3, threads=2)


def subject(label: str, needs: int = 0) -> Subject:
    return Subject(label, {"path": "x", "kind": "model"}, 5_000_000, PerToken(1e6, 1000), needs)


def result(label: str, decode: list[float], others: float = 0.0) -> Result:
    runs = [
        Run(
            label,
            turn,
            float(turn),
            prefill_seconds=0.5,
            decode_seconds=s,
            seconds=1,
            others=others,
        )
        for turn, s in enumerate(decode)
    ]
    memory = Memory(anonymous=3 << 20, file=2 << 20, resident=6 << 20)
    return Result(subject(label), [3.0, 1.0, 2.0], runs, {"engine": "an engine"}, memory)


def bandwidth(gb_per_s: float) -> Bandwidth:
    return Bandwidth("max int8", gb_per_s, gb_per_s - 1, gb_per_s + 1)


def test_figures_are_medians() -> None:
    found = figures(result("a", [0.09, 0.9, 0.045]), SETTINGS, gb_per_s=0.2)
    assert found.load_seconds == 2.0
    assert found.prefill == (200, 200, 200)
    assert found.decode == pytest.approx((100, 10, 200))
    # 10 positions before the first of 9 steps, which sees its own too: 11 to 19, 15 on average.
    assert found.bytes_per_token == 1e6 + 15 * 1000
    assert found.gb_per_s == pytest.approx(0.1015)
    assert found.of_bandwidth == pytest.approx(0.5075)


def report(others: float = 0.0, after: float = 0.24) -> Report:
    results = [result("onnx:int4", [0.09, 0.09, 0.09], others), result("gguf:q4_0", [0.045] * 3)]
    return Report({"cpu": "one"}, SETTINGS, True, bandwidth(0.2), bandwidth(after), results)


def test_bandwidth_is_the_mean_of_before_and_after() -> None:
    found = report()
    assert found.gb_per_s == pytest.approx(0.22)
    assert found.drift == pytest.approx(0.2)
    assert found.figures()[1].of_bandwidth == pytest.approx(0.203 / 0.22)
    assert found.as_dict()["bandwidth"]["before"]["kernel"] == "max int8"


def shown(found: Report) -> str:
    console = Console(width=120, highlight=False)
    with console.capture() as capture:
        for part in render(found):
            console.print(part)
    return capture.get()


def test_the_table_and_its_warnings() -> None:
    quiet, loud = shown(report(after=0.2)), shown(report(others=1.5, after=0.1))
    row = next(line for line in quiet.splitlines() if line.startswith("gguf:q4_0 "))
    assert row.split() == "gguf:q4_0 5 2.0 200.0 200.0 1.0 0.2 1.01 3 2".split()
    assert "gguf:q4_0 beside onnx:int4: prefill x 1.00, decode x 2.00" in quiet
    assert "warning" not in quiet
    assert "other processes kept 0.8 CPUs busy" in loud
    assert "changed by -50%" in loud
    assert max(map(len, quiet.splitlines()[:12])) <= 100


def test_others_are_not_judged_by_a_moment() -> None:
    found = report(others=1.5)
    assert found.others() == pytest.approx(0.75)
    for one in found.results:
        one.runs = [Run(r.label, r.round, 0, 0.1, 0.1, 0.01, 0.02) for r in one.runs]
    assert found.others() is None


def test_what_fits_in_memory() -> None:
    both = [subject("a", 40), subject("b", 50)]
    assert fit_together(both, available=100, reserve=5)
    assert not fit_together(both, available=100, reserve=6)
    assert fit_together(both, available=None, reserve=1 << 60)


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_kernel_reads_every_piece(kernel: str) -> None:
    pieces = [np.ones(1 << 16, np.uint8) for _ in range(5)]
    seen: list[int] = []
    original = KERNELS[kernel]
    counted = {kernel: lambda piece: (seen.append(piece.nbytes), original(piece))}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("emo_export.bench.bandwidth.KERNELS", counted)
        found = read_passes(pieces, kernel, threads=2, passes=3)
    assert sum(seen) == 3 * sum(piece.nbytes for piece in pieces)
    assert len(found) == 3 and min(found) > 0


@pytest.mark.parametrize("small", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_bandwidth_of_this_machine(small: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if small:  # out of the caches, perhaps
        monkeypatch.setattr("emo_export.bench.bandwidth.LEAST", 16 << 20)
        monkeypatch.setattr("emo_export.bench.bandwidth.last_level_caches", lambda: 0)
    found = measure(1)
    assert found.kernel in KERNELS
    # A Raspberry Pi 4 has 4, a large server some hundred for one thread.
    assert 0.1 < found.least <= found.gb_per_s <= found.most < 2000
    assert measure(1, "max int8").kernel == "max int8"


def test_threads_that_cannot_be_started_are_an_error() -> None:
    def little_memory() -> None:  # 1000 stacks do not fit
        resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))

    command = [
        sys.executable,
        "-m",
        "emo_export.bench.bandwidth",
        "1000",
        str(16 << 20),
        "max int8",
    ]
    environment = child_environment() | dict.fromkeys(SERIAL_BLAS, "1")
    done = subprocess.run(
        command,
        preexec_fn=little_memory,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1 and "can't start new thread" in done.stderr


def test_last_level_caches_are_counted_once_each(tmp_path: Path) -> None:
    caches = {"1": ("32K", "0"), "2": ("1024K", "0"), "3": ("16M", "0-1")}
    for cpu in range(4):
        for index, (level, (size, shared)) in enumerate(caches.items()):
            folder = tmp_path / f"cpu{cpu}" / "cache" / f"index{index}"
            folder.mkdir(parents=True)
            (folder / "level").write_text(level + "\n")
            (folder / "size").write_text(size + "\n")
            mine = shared if level == "3" and cpu < 2 else "2-3" if level == "3" else str(cpu)
            (folder / "shared_cpu_list").write_text(mine + "\n")
    assert last_level_caches(tmp_path) == 32 << 20
    assert last_level_caches(tmp_path / "none") == UNKNOWN_CACHE


@pytest.mark.slow
@pytest.mark.parametrize("target", ["onnx:int4", "gguf:q4_0"])
def test_an_idle_child_uses_no_cpu(target: str) -> None:
    child = Child(target, CHILD)
    try:
        path = str(exported(NANO, target))
        opening = {"do": "open", "path": path, "kind": "model", "threads": 2}
        with pytest.raises(EmoExportError, match="needs 5000 positions: they exceed the context"):
            child.ask({**opening, "positions": 5000})
        opened = child.ask({**opening, "positions": 64}, sample=True)
        assert opened["seconds"] > 0 and opened["engine"]["threads"] == "2"
        assert child.ask({"do": "prefill", "tokens": 40})["seconds"] > 0
        before = child.cpu_seconds()
        time.sleep(0.5)
        after = child.cpu_seconds()
        assert before is not None and after is not None and after - before <= 0.05
        assert child.memory is not None and child.memory.anonymous > 1 << 20
        assert child.memory.resident >= child.memory.file > 1 << 20
        with pytest.raises(EmoExportError, match=rf"{target}: .*exceed the context"):
            child.ask({"do": "prefill", "tokens": 1 << 20})
        assert child.ask({"do": "decode", "tokens": 2, "depth": 3})["seconds"] > 0
    finally:
        child.kill()
    with pytest.raises(ProcessLookupError):
        os.kill(child.pid, 0)


def test_a_child_that_dies_leaves_its_last_words() -> None:
    child = Child("a model", CHILD)
    try:
        with pytest.raises(
            EmoExportError, match=r"(?s)a model: .*ended with code 1.*KeyError: 'do'"
        ):
            child.ask({"nothing": 0})
        with pytest.raises(EmoExportError, match="ended with code 1"):
            child.ask({"do": "prefill", "tokens": 1})
    finally:
        child.kill()


def test_the_machine_is_busy_at_times() -> None:
    before = busy_seconds()
    stop = time.process_time() + 0.2
    while time.process_time() < stop:
        pass
    after = busy_seconds()
    assert before is not None and after is not None and after - before >= 0.15
