"""The command `bench` as its user meets it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit.command import Emo
from tests.kit.packages import package
from tests.kit.paths import NANO
from tests.kit.without import without

SHORT = ("--prefill", 16, "--decode", 4, "--depth", 4, "--threads", 1)
# The read bandwidth over a small buffer: what it is worth is not the question here.
BUFFER = 8 << 20
BENCH = f"""
from emo_export.bench import bandwidth
bandwidth.LEAST, bandwidth.last_level_caches = {BUFFER}, lambda: 0
from emo_export.cli.main import main
main()
"""


@pytest.fixture(autouse=True)
def small_buffer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("emo_export.bench.bandwidth.LEAST", BUFFER)
    monkeypatch.setattr("emo_export.bench.bandwidth.last_level_caches", lambda: 0)


@pytest.fixture(scope="module")
def out() -> Path:
    return package(NANO, ("onnx:int4", "gguf:q4_0"), "--no-golden")


@pytest.mark.slow
def test_models_take_turns(out: Path, emo: Emo) -> None:
    done = emo("bench", out, *SHORT, "--rounds", 3, "--json")
    assert done.code == 0
    found = json.loads(done.out)
    assert found["open_at_once"] is True
    turns = [(run["round"], run["label"]) for run in found["runs"]]
    assert turns == [(r, t) for r in range(3) for t in ("onnx:int4", "gguf:q4_0")]
    ends = [run["at_seconds"] + run["seconds"] for run in found["runs"]]
    starts = [run["at_seconds"] for run in found["runs"]]
    assert all(end <= start for end, start in zip(ends, starts[1:], strict=False))
    onnx, gguf = found["models"]
    assert onnx["engine"]["engine"] == "ONNX Runtime" and gguf["engine"]["engine"] == "llama.cpp"
    for model in (onnx, gguf):
        speeds = sorted(
            4 / run["decode_seconds"] for run in found["runs"] if run["label"] == model["target"]
        )
        least, middle, most = speeds
        assert list(model["figures"]["decode"].values()) == pytest.approx([middle, least, most])
        read = model["weights_per_token"] + model["cache_per_position"] * (4 + 2.5)
        assert model["figures"]["bytes_per_token"] == pytest.approx(read)
        reached = read * middle / 1e9
        share = reached / found["bandwidth"]["gb_per_s"]
        assert model["figures"]["of_bandwidth"] == pytest.approx(share)
        assert model["bytes"] > model["weights_per_token"]
        assert model["memory"]["resident"] > model["memory"]["anonymous"] > 1 << 20
        assert len(model["load_seconds"]) == 1


@pytest.mark.slow
def test_one_at_a_time_prints_a_table(out: Path, tmp_path: Path, emo: Emo) -> None:
    """Two files of one target, which are told apart by their paths."""
    paths = out / "model-Q4_0.gguf", Path(shutil.copy(out / "model-Q4_0.gguf", tmp_path))
    done = emo("bench", *paths, *SHORT, "--rounds", 2, "--one-at-a-time")
    assert done.code == 0
    for word in ("read bandwidth:", "GB/s before", "prefill of 16 tokens", "one open at a time"):
        assert word in done.out
    first, second = (f"{path} (gguf:q4_0)" for path in paths)
    assert f"{second} beside {first}: prefill x" in done.out
    assert done.err.count("opened in") == 4


def test_short_memory_opens_one_at_a_time(
    out: Path, emo: Emo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("emo_export.cli.bench.available_memory", lambda: 250 << 20)
    monkeypatch.setattr("emo_export.cli.bench.buffer_bytes", lambda: 256 << 20)
    done = emo("bench", out / "model-Q4_0.gguf", *SHORT, "--rounds", 1, "--json")
    assert done.code == 0 and json.loads(done.out)["open_at_once"] is False
    assert "more than 95% of the 0.3 GB that are available: each is opened anew" in done.err


@pytest.mark.slow
def test_what_is_missing_or_damaged_is_named(out: Path, tmp_path: Path, emo: Emo) -> None:
    absent = emo("bench", tmp_path / "absent.gguf")
    assert absent.code == 2 and "no such file" in absent.err
    copy = shutil.copytree(out, tmp_path / "copy")
    for name in ("model-Q4_0.gguf", "onnx-int4/model.onnx.data", "onnx-int4/model.onnx"):
        os.truncate(copy / name, (copy / name).stat().st_size // 2)
        path = copy / name
        done = emo("bench", path if path.suffix == ".gguf" else path.parent, *SHORT)
        assert done.code == 2 and done.out == ""
        assert name.split("/")[0] in done.err and "bug" not in done.err
    twice = emo("bench", out, out, *SHORT)
    assert twice.code == 2 and "give each model once" in twice.err
    long = emo("bench", out, "--prefill", 1 << 20, "--threads", 1)
    assert long.code == 2 and "onnx:int4: " in long.err and "exceed the context" in long.err


@pytest.mark.slow
def test_missing_engines(out: Path, tmp_path: Path) -> None:
    done = without("xllamacpp", tmp_path, "bench", out)
    assert done.returncode == 3 and "gguf:q4_0" in done.stderr and "[llama]" in done.stderr
    done = without("transformers", tmp_path, "bench", out, "--olmoe-bf16", NANO)
    assert done.returncode == 3 and "pip install transformers torch" in done.stderr
    light = "torch,onnx,gguf,transformers,safetensors,ml_dtypes"
    done = without(light, tmp_path, "bench", out, *SHORT, "--rounds", "1", code=BENCH)
    assert done.returncode == 0 and "gguf:q4_0" in done.stdout


def children(pid: int) -> Iterator[int]:
    """The processes that a process has started."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            yield int(path.parent.name)


def interrupted(out: Path, log: Path, disturb: signal.Signals, child: bool) -> tuple[int, str]:
    """Start a long bench, send a signal to it or to a child of it, and see how it ends."""
    command = [sys.executable, "-c", BENCH, "bench", str(out), *map(str, SHORT)]
    with log.open("w") as said:
        process = subprocess.Popen([*command, "--rounds", "100000"], stdout=said, stderr=said)
        try:
            deadline = time.monotonic() + 60
            while "round 2 " not in log.read_text() and time.monotonic() < deadline:
                time.sleep(0.02)
            started = list(children(process.pid))
            assert len(started) == 2
            os.kill(started[0] if child else process.pid, disturb)
            code = process.wait(60)
        finally:
            process.terminate()  # so that a failure leaves no bench behind
    for pid in started:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    return code, log.read_text()


@pytest.mark.slow
def test_an_interrupt_ends_the_children_too(out: Path, tmp_path: Path) -> None:
    code, said = interrupted(out, tmp_path / "log", signal.SIGINT, child=False)
    assert code == 130
    assert said.splitlines()[-1] == "interrupted"


def test_a_killed_child_is_named(out: Path, tmp_path: Path) -> None:
    code, said = interrupted(out, tmp_path / "log", signal.SIGKILL, child=True)
    assert code == 2
    assert "onnx:int4: its process ended by SIGKILL (out of memory?)" in said
