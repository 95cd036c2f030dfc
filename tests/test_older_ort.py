"""With a real ONNX Runtime 1.22: `@if` runs, the others are refused with what to do."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.exporting import exported
from tests.older_ort import environment
from tests.paths import NANO

pytestmark = pytest.mark.slow


def emo(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "emo_export.cli", *map(str, arguments)]
    older = environment("1.22.1")
    return subprocess.run(command, env=older, capture_output=True, text=True, timeout=120)


def test_if_runs_with_and_without_a_copy(tmp_path: Path) -> None:
    text = ("run", exported(NANO, "onnx:int4@if"), "-p", "def main(", "-n", 12, "--temperature", 0)
    plain = emo(*text)
    assert plain.returncode == 0 and len(plain.stdout) > 10, plain.stderr
    copies = [emo(*text, "--cache-prepacked", "--cache-dir", tmp_path) for _ in range(2)]
    for done in copies:
        assert (done.returncode, done.stdout) == (0, plain.stdout), done.stderr
    assert "prepacked in" in copies[0].stderr and copies[1].stderr == ""


@pytest.mark.parametrize(
    ("target", "needed", "other"),
    [("onnx:int4", "1.31", "onnx:int4@if"), ("onnx:int8@standard", "1.23", "onnx:int8@if")],
)
def test_others_are_refused_with_two_remedies(target: str, needed: str, other: str) -> None:
    folder = exported(NANO, target)
    done = emo("run", folder, "-p", "a", "-n", 1)
    assert done.returncode == 2
    said = f"needs onnxruntime {needed} or newer and 1.22.1 is installed: pip install"
    assert said in done.stderr and f"--to {other}, which opens in onnxruntime 1.22" in done.stderr
    warnings = json.loads(emo("inspect", folder, "--json").stdout)["warnings"]
    assert any(said in warning for warning in warnings)


def test_doctor_agrees() -> None:
    checks = {check["name"]: check for check in json.loads(emo("doctor", "--json").stdout)}
    assert checks["onnxruntime loads"]["found"].endswith("opens the graphs if")
