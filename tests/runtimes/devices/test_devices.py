"""Emulated devices from the command line: every format on the kernels that each device chooses."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from emo_export.runtimes.ort.path import BLOCKS, FLOAT, TOKENS
from tests.kit.command import Emo
from tests.kit.emulated import emulated
from tests.kit.packages import DEVICE_TARGETS, package
from tests.kit.paths import NANO

pytestmark = pytest.mark.device

# What the kernels are chosen by and which are: from Arm's manuals of the cores (no dot product in
# a Cortex-A72, no i8mm in a Cortex-A76) and llama.cpp's ggml/src/CMakeLists.txt (the CPU variants).
DEVICES: Mapping[str, Mapping[str, Any]] = {
    "pi4": {
        "has": {"asimd"},
        "lacks": {"asimddp", "i8mm", "sve"},
        "ggml": "libggml-cpu-armv8.0_1.so",
        "MatMulNBits 4 bits": FLOAT,
        "QMoE 8 bits": FLOAT,
    },
    "pi5": {
        "has": {"asimddp", "fphp"},
        "lacks": {"i8mm", "sve"},
        "ggml": "libggml-cpu-armv8.2_2.so",
        "MatMulNBits 4 bits": TOKENS,
        "QMoE 8 bits": BLOCKS,
    },
    "phone": {
        "has": {"asimddp", "i8mm", "sve2"},
        "lacks": {"sme"},
        "ggml": "libggml-cpu-armv8.6_2.so",
        "MatMulNBits 4 bits": TOKENS,
        "QMoE 8 bits": BLOCKS,
    },
}


@pytest.fixture(scope="session", autouse=True)
def devices() -> None:
    emulated()


@pytest.mark.parametrize("name", DEVICES)
def test_every_format_is_within_its_limits(name: str, emo: Emo, tmp_path: Path) -> None:
    folder = package(NANO, DEVICE_TARGETS)
    files = ["--junit", tmp_path / "j.xml", "--html", tmp_path / "r.html"]
    done = emo("validate", folder, "--device", name, "--json", *files)
    assert done.code == 0, done.err
    answer = json.loads(done.out)
    assert answer["passed"] and [r["target"] for r in answer["targets"]] == list(DEVICE_TARGETS)
    expected = DEVICES[name]
    for report in answer["targets"]:
        _check_machine(report["machine"], expected)
        _check_rows(report["rows"], exact=name == "pi4" and "onnx" in report["target"])
        if report["target"].startswith("gguf"):
            assert report["engine"]["CPU backend"] == expected["ggml"]
        assert report["memory"]["emulator_bytes"] > 10_000_000
    paths = next(r for r in answer["targets"] if r["target"].startswith("onnx"))["kernels"]
    for operator in ("MatMulNBits 4 bits", "QMoE 8 bits"):
        assert paths[operator] == expected[operator]
    suites = ET.parse(tmp_path / "j.xml").getroot()
    assert len(suites) == len(DEVICE_TARGETS) and suites.get("failures") == "0"
    assert name in (tmp_path / "r.html").read_text("utf-8")


def _check_machine(machine: Mapping[str, str], expected: Mapping[str, Any]) -> None:
    features = set(machine["CPU features"].split())
    assert machine["architecture"] == "aarch64"
    assert expected["has"] <= features and not expected["lacks"] & features


def _check_rows(rows: list[Mapping[str, Any]], exact: bool) -> None:
    assert [row["mode"] for row in rows] == ["prefill", "decode", "prefill"]
    for row in rows:
        assert row["measured"]["positions"] == 48
        assert row["measured"]["kl_mean"] <= row["limits"]["kl_mean"]
        if exact and row["against"] == "dequantised":
            # Float activations: nothing but the order of sums is another than the reference's.
            assert row["limits"]["kl_mean"] == 1e-7 and row["measured"]["kl_mean"] < 1e-10


def test_an_onnxruntime_that_crashes_on_a_pi_4_is_a_failed_validation(
    emo: Emo, tmp_path: Path
) -> None:
    # 1.21.0 has an FP16 instruction that its loading runs everywhere (its issue 23957).
    made = tmp_path / "made"
    options = ["--to", "onnx:f32@if", "--plain-attention"]
    assert emo("export", NANO, "-o", made, *options).code == 0
    emulated("1.21.0")
    asked = ["--onnxruntime", "1.21.0", "--device-tokens", "16"]
    done = emo("validate", made, "--device", "pi4", "--device", "pi5", *asked)
    assert done.code == 1
    assert "onnx:f32@if on pi4" in done.err and "pi5" not in done.err.splitlines()[-1]
    assert re.search(r"onnxruntime 1\.21\.0.* ran an instruction that this CPU does not", done.out)
    verdicts = [line.split()[2] for line in done.out.splitlines() if "onnx:f32@if " in line][:2]
    assert verdicts == ["FAIL", "pass"]


def test_few_positions_are_no_failure(emo: Emo) -> None:
    done = emo(
        "validate", package(NANO, DEVICE_TARGETS), "--device", "pi4", "--device-tokens", "12"
    )
    assert done.code in (0, 4) and "FAIL" not in done.out, done.out + done.err
    for line in done.out.splitlines():
        # A verdict is never without its figure.
        assert ("not enough text" in line and line.startswith("pi4 ")) <= ("~" in line), line


def test_what_does_not_fit_names_what_does(emo: Emo) -> None:
    folder = package(NANO, DEVICE_TARGETS)
    wanted = ["--target", "onnx:int8", "--target", "gguf:q4_0"]
    done = emo("validate", folder, "--device", "pi4", "--ram", "100MB", *wanted)
    assert done.code == 1
    assert "onnx:int8" in done.out and "more than --ram 100.0 MB" in done.out
    assert "gguf:q4_0 of this package needs" in done.out and "and fits" in done.out


def test_damaged_weights_are_found_there_too(emo: Emo, tmp_path: Path) -> None:
    made = Path(shutil.copytree(package(NANO, DEVICE_TARGETS), tmp_path / "made"))
    model = made / "model-Q8_0.gguf"
    content = bytearray(model.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 400_000] = bytes(400_000)
    model.write_bytes(content)
    options = ["--device", "pi5", "--target", "gguf:q8_0", "--device-tokens", "16"]
    done = emo("validate", made, *options)
    assert done.code == 1 and "differs from the manifest" in done.err
    _accept(made, model)
    done = emo("validate", made, *options)
    assert done.code == 1 and "mean KL" in done.out and "FAIL" in done.out


def _accept(folder: Path, file: Path) -> None:
    """Make the manifest say that the damaged file is the exported one."""
    from emo_export.files.manifest import digest

    manifest = folder / "manifest.json"
    content = json.loads(manifest.read_text("utf-8"))
    for entry in content["files"]:
        if entry["path"] == file.name:
            entry |= {"sha256": digest(file), "parts": []}
    manifest.write_text(json.dumps(content), "utf-8")
