"""Slow: every target on emo-nano with much held-out text, and the peak memory of an export."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from emo_export.converters.gguf.scheme import gguf_scheme
from emo_export.model.checkpoint import Checkpoint
from emo_export.model.product import Product
from emo_export.parity.golden import kl_divergence, run_logits
from emo_export.reference.passes import logits
from emo_export.runtimes.llama.model import LlamaCpp
from tests.kit.exporting import dequantised_source
from tests.kit.paths import NANO

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
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("all") / "out"


@pytest.fixture(scope="module")
def reports(made: Path) -> dict[str, Any]:
    command = [
        sys.executable,
        "-m",
        "emo_export.cli.main",
        "export",
        str(NANO),
        "-o",
        str(made),
        "--json",
    ]
    command += ["--heldout-tokens", "12288"]
    for target in TARGETS:
        command += ["--to", target]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return {report["target"]: report for report in json.loads(done.stdout)["targets"]}


@pytest.mark.parametrize("target", TARGETS)
def test_limits(target: str, reports: dict[str, Any]) -> None:
    report = reports[target]
    assert report["heldout_tokens"] > 12000
    rows = report["rows"]
    dequantised = [r for r in rows if r["against"] == "dequantised"]
    quantised = target in MOST_PERPLEXITY_RATIO
    assert len(dequantised) == (2 if target.endswith("f32") else 4)
    for row in dequantised:
        limit = 1e-6 if target.endswith("f32") else 1e-5
        if quantised and row["arithmetic"] == "shipped":
            limit = 5e-3
        elif target == "gguf:bf16" and row["arithmetic"] == "shipped":
            continue  # judged below, on the published golden's tokens
        assert row["measured"]["kl_mean"] <= limit
    (original,) = [r for r in rows if r["against"] == "original"]
    if quantised:
        assert original["perplexity_ratio"] <= MOST_PERPLEXITY_RATIO[target]


@pytest.mark.parametrize("name", ["F16", "BF16"])
def test_half_precision_as_shipped(name: str, reports: dict[str, Any], made: Path) -> None:
    """On the tokens that came with the checkpoint.

    llama.cpp rounds activations to the weights' type; where that turns a near tie of the router,
    the tokens that attend to that position move too, so one tie can outweigh the rest.
    """
    golden = np.load(NANO / "golden.npz")
    product = Product.whole(Checkpoint.open(NANO))
    scheme = gguf_scheme(name.lower(), product.config)
    sequences = list(golden["input_ids"])
    expected = logits(product.config, dequantised_source(product, scheme), sequences)
    runtime = LlamaCpp(made / f"model-{name}.gguf", threads=1, parity=True)
    found = run_logits(runtime, golden["input_ids"], 0)
    divergence = kl_divergence(np.stack(expected), found)
    assert np.sort(divergence.ravel())[:-1].mean() <= 1e-5  # f16 turns one tie of margin 5e-5
    assert np.median(divergence) <= 1e-5


def test_peak_memory_is_under_three_expert_stacks() -> None:
    # Its peak is that of four layers (217 MB), and layers that are kept would show.
    command = [sys.executable, "-m", "tests.bench.memory", "--layers", "3", "--json"]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=Path(__file__).parents[2], check=False
    )
    found = json.loads(done.stdout)
    assert done.returncode == 0
    assert 0 < found["peak_bytes"] < found["limit_bytes"]
