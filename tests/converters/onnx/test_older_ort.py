"""With a real ONNX Runtime 1.22 `@if` runs, with 1.21 its plain form; others are refused."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bench.ort_versions import make_plain
from tests.kit.exporting import export_plain, exported
from tests.kit.older_ort import environment
from tests.kit.paths import NANO
from tests.kit.synth import CONFIGS

pytestmark = pytest.mark.slow


def emo(*arguments: object, version: str = "1.22.1") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "emo_export.cli.main", *map(str, arguments)]
    older = environment(version)
    return subprocess.run(command, env=older, capture_output=True, text=True, timeout=120)


def test_if_runs_with_and_without_a_copy(tmp_path: Path) -> None:
    text = ("run", exported(NANO, "onnx:int4@if"), "-p", "def main(", "-n", 12, "--temperature", 0)
    plain = emo(*text)
    assert plain.returncode == 0 and len(plain.stdout) > 10, plain.stderr
    copies = [emo(*text, "--cache-prepacked", "--cache-dir", tmp_path) for _ in range(2)]
    for done in copies:
        assert (done.returncode, done.stdout) == (0, plain.stdout), done.stderr
    assert "prepacked in" in copies[0].stderr and "prepack" not in copies[1].stderr


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


def test_the_plain_form_is_right_in_1_21(tmp_path: Path) -> None:
    for name in CONFIGS:
        (tmp_path / name).mkdir()
        make_plain(tmp_path / name, name)
    command = [sys.executable, "-m", "tests.bench.ort_versions", "check", str(tmp_path)]
    done = subprocess.run(
        command, env=environment("1.21.0"), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("onnxruntime 1.21.0\n")
    for kind in ("f32", "int4"):
        assert re.search(rf"^{kind}@if-plain: .*, 0 failed", done.stdout, re.MULTILINE)


def test_1_21_runs_the_plain_form_alone(tmp_path: Path) -> None:
    said = "needs onnxruntime 1.22 or newer and 1.21.0 is installed"
    for kind in ("f32", "int4"):
        export_plain(tmp_path / kind, NANO, kind)
        text = ("run", tmp_path / kind, "-p", "def main(", "-n", 12, "--temperature", 0)
        done, newer = emo(*text, version="1.21.0"), emo(*text)
        assert (done.returncode, done.stdout) == (0, newer.stdout), done.stderr
        assert len(done.stdout) > 10
        done = emo("run", exported(NANO, f"onnx:{kind}@if"), "-p", "a", "-n", 1, version="1.21.0")
        assert done.returncode == 2 and said in done.stderr


@pytest.mark.parametrize("version", ["1.21.0", "1.22.1"])
def test_the_kernels_that_an_older_one_lacks(version: str) -> None:
    script = (
        "import json; from emo_export.runtimes.ort.path import nbits_paths;"
        "print(json.dumps(nbits_paths()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment(version), capture_output=True, text=True
    )
    found = json.loads(done.stdout)
    assert found["MatMulNBits 4 bits"].startswith("int8 activations")
    assert (found["MatMulNBits 8 bits"] == "does not run here") == (version == "1.21.0")
    assert found["QMoE 4 bits"] == found["QMoE 8 bits"] == "does not run here"
