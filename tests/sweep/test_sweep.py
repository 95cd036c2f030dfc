"""Sweeps on a Dask cluster of two workers: what is made, skipped, made anew, recorded as failed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from emo_export.files.manifest import Manifest
from emo_export.files.verifying import verify
from tests.kit.command import NOT_FAILED, Emo
from tests.kit.paths import GOLDEN
from tests.kit.processes import wait_for

SPEC = f"""
checkpoint = "{GOLDEN / "base"}"
keep = [6, "all"]
targets = ["gguf:f32"]
[domains.code]
calibration = ["code.txt"]
heldout = ["code-held.txt"]
[domains.prose]
calibration = ["prose.txt"]
heldout = ["prose-held.txt"]
[options]
calibration_tokens = 256
heldout_tokens = 128
"""
NAMES = ["code-6-router-gguf-f32", "code-all-gguf-f32"]
NAMES += [name.replace("code", "prose") for name in NAMES]
TEXTS = {
    "code.txt": "int main(void) { return 0; }\n" * 20,
    "code-held.txt": "def mean(values): return sum(values) / len(values)\n" * 20,
    "prose.txt": "In the morning the harbour was quiet, and the boats lay still.\n" * 20,
    "prose-held.txt": "People walked home slowly and talked about nothing much.\n" * 20,
}


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    for name, text in TEXTS.items():
        (tmp_path / name).write_text(text, "utf-8")
    path = tmp_path / "spec.toml"
    path.write_text(SPEC, "utf-8")
    return path


@pytest.fixture(scope="module")
def scheduler() -> Iterator[str]:
    """A scheduler and two workers that are threads of this process, and talk over TCP."""
    from distributed import LocalCluster

    with LocalCluster(
        processes=False,
        protocol="tcp://",
        n_workers=2,
        threads_per_worker=1,
        memory_limit=0,
        dashboard_address=None,
    ) as cluster:
        yield cluster.scheduler_address.replace("tcp://", "dask://")


def told(out: Path) -> dict[str, Any]:
    content = json.loads((out / "sweep.json").read_text("utf-8"))
    return {one["label"]["name"]: one for one in content["variants"]}


@pytest.mark.slow
def test_a_sweep_goes_on_where_it_was(spec: Path, tmp_path: Path, emo: Emo, scheduler: str) -> None:
    out = tmp_path / "out"
    (out / NAMES[1]).mkdir(parents=True)
    (out / NAMES[1] / "mine").write_text("not an export", "utf-8")
    arguments = ("sweep", spec, "-o", out, "--on", scheduler)
    first = emo(*arguments)
    assert first.code == 2 and f"{NAMES[1]}: " in first.err and "4 to make" in first.err
    found = told(out)
    assert list(found) == NAMES and "was not made by this command" in found[NAMES[1]]["error"]
    assert (out / NAMES[1] / "mine").exists()
    for name in (NAMES[0], NAMES[2], NAMES[3]):
        _check_figures(out / name, found[name])

    (out / NAMES[1] / "mine").unlink()
    model = out / NAMES[2] / "model-F32.gguf"
    model.write_bytes(model.read_bytes()[:-1])
    stamps = {name: (out / f"{name}.json").stat().st_mtime_ns for name in NAMES}
    second = emo(*arguments, "--json")
    assert second.code in NOT_FAILED, second.err
    assert "2 are there, 2 to make" in second.err
    assert f"{NAMES[2]}: made anew, for its folder is not as it was left" in second.err
    again = told(out)
    assert {name: again[name] for name in (NAMES[0], NAMES[3])} == {
        name: found[name] for name in (NAMES[0], NAMES[3])
    }
    assert json.loads(second.out)["variants"] == list(again.values())
    assert all(not verify(out / name) for name in NAMES)
    changed = {n for n in NAMES if (out / f"{n}.json").stat().st_mtime_ns != stamps[n]}
    assert changed == {NAMES[1], NAMES[2]}

    (tmp_path / "prose-held.txt").write_text("The dog slept in the sun beside the nets.\n" * 20)
    third = emo(*arguments)
    assert third.code in NOT_FAILED and "2 are there, 2 to make" in third.err
    assert f"{NAMES[3]}: made anew, for heldout changed" in third.err
    assert told(out)[NAMES[3]]["judged"] != again[NAMES[3]]["judged"]
    page = (out / "sweep.html").read_text("utf-8")
    assert page.count("<polyline") == 2 and page.count("<circle") == 4


def _check_figures(folder: Path, found: dict[str, Any]) -> None:
    """What the table says is what the folder's own parity.json and files say."""
    (target,) = json.loads((folder / "parity.json").read_text("utf-8"))["targets"]
    row = next(row for row in target["rows"] if row["against"] == "original")
    (judged,) = found["judged"]
    assert judged["domain"] == found["label"]["domain"]
    assert judged["after"] == pytest.approx(row["perplexity"])
    assert judged["ratio"] == pytest.approx(judged["after"] / judged["before"])
    assert found["kl_bits"] == row["measured"]["kl_mean"]
    assert found["verdict"] == target["verdict"]
    assert found["bytes"] == (folder / "model-F32.gguf").stat().st_size
    pruned = Manifest.load(folder).kept is not None
    assert pruned == bool(found["label"]["method"])
    # Leaving experts out costs more than eight bits do.
    assert found["kl_full"] > 10 * found["kl_bits"] if pruned else found["kl_full"] < 0.01


def test_without_a_scheduler(spec: Path, tmp_path: Path, emo: Emo, monkeypatch: Any) -> None:
    monkeypatch.setattr("emo_export.sweep.cluster.SCHEDULER_SECONDS", 0.5)
    done = emo("sweep", spec, "-o", tmp_path / "out", "--on", "dask://127.0.0.1:1")
    assert done.code == 2 and "no Dask scheduler answers" in done.err


def working(out: Path) -> list[int]:
    """The processes that are at a variant; a folder may be what an earlier one left."""
    signed = [path.read_text() for path in out.glob(".*.partial/lock")]
    return [int(owner) for owner in signed if owner and Path(f"/proc/{owner.strip()}").exists()]


@pytest.mark.slow
def test_interrupted_and_killed_on_processes_of_this_machine(spec: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "emo_export", "sweep", str(spec), "-o", str(out)]
    command += ["--workers", "2"]
    began = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)
    wait_for(lambda: bool(working(out)), 240)
    os.killpg(began.pid, signal.SIGINT)  # as a terminal does, to the workers too
    assert began.wait(120) == 130
    assert not working(out)
    assert not (out / "sweep.json").exists()

    with (tmp_path / "said").open("w") as said:
        second = subprocess.Popen(command, stderr=said, start_new_session=True)
        wait_for(lambda: bool(working(out)), 240)
        os.kill(working(out)[0], signal.SIGKILL)
        assert second.wait(600) == 2
    assert "its worker ended" in (tmp_path / "said").read_text()
    found = told(out)
    assert list(found) == NAMES and sum(bool(one["error"]) for one in found.values()) == 1

    assert subprocess.run(command, stderr=subprocess.DEVNULL, check=False).returncode in NOT_FAILED
    assert all(not verify(out / name) for name in NAMES)
    assert not list(out.glob(".*"))
