"""Slow: every target on emo-nano with all its held-out text, and the peak memory of an export."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.paths import NANO

pytestmark = pytest.mark.slow

TARGETS = (
    "gguf:f32",
    "gguf:f16",
    "gguf:bf16",
    "gguf:q8_0",
    "gguf:q4_0",
    "onnx:f32",
    "onnx:int8",
    "onnx:int4",
)
MOST_PERPLEXITY_RATIO = {
    "gguf:q8_0": 1.005,
    "onnx:int8": 1.005,
    "gguf:q4_0": 1.06,
    "onnx:int4": 1.06,
}


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("all") / "out"
    command = [
        sys.executable,
        "-m",
        "emo_export.cli",
        "export",
        str(NANO),
        "-o",
        str(out),
        "--json",
    ]
    command += ["--heldout-tokens", "60000"]
    for target in TARGETS:
        command += ["--to", target]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return {report["target"]: report for report in json.loads(done.stdout)["targets"]}


@pytest.mark.parametrize("target", TARGETS)
def test_limits(target: str, reports: dict[str, Any]) -> None:
    report = reports[target]
    assert report["heldout_tokens"] > 30000
    rows = report["rows"]
    dequantised = [r for r in rows if r["against"] == "dequantised"]
    quantised = target in MOST_PERPLEXITY_RATIO
    assert len(dequantised) == (2 if target.endswith("f32") else 4)
    for row in dequantised:
        exact = row["arithmetic"] == "exact"
        limit = (1e-5 if exact else 5e-3) if quantised else 1e-5
        assert row["measured"]["kl_mean"] <= (1e-6 if target.endswith("f32") else limit)
    (original,) = [r for r in rows if r["against"] == "original"]
    if quantised:
        assert original["perplexity_ratio"] <= MOST_PERPLEXITY_RATIO[target]


def test_peak_memory_is_under_three_expert_stacks() -> None:
    command = [sys.executable, "-m", "tests.bench.memory", "--json"]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=Path(__file__).parents[1], check=False
    )
    found = json.loads(done.stdout)
    assert done.returncode == 0
    assert 0 < found["peak_bytes"] < found["limit_bytes"]
