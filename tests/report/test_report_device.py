"""What the report's page says of a device: memory, speed, kernels, commands; the bars' axis."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from emo_export.parity.result import Result
from emo_export.report.html.page import html
from tests.kit.report_pages import WHEN, check_figures, result_on, within_limits
from tests.parity.test_by_position import report
from tests.report.test_report_html import page, passing

NEEDS = {
    "target": "gguf:q4_0",
    "ram": 60_000_000,
    "context": 512,
    "total": 71_008_256,
    "least": 15_650_816,
    "anonymous": 32_497_664,
    "cache": 1_572_864,
    "weights_mapped": 14_077_952,
    "libraries": 24_432_640,
    "base": 44_511_232,
    "measured": True,
    "enforced": True,
    "oom_killed": False,
    "holds": False,
}


def needing(report: Result, **changes: Any) -> Result:
    memory = {"limit": 60_000_000, "finished": True, "enforced": True, "how": "cgroup v2 /a"}
    memory |= {"held_by": ["1.07 GB", "2.15 GB"], "too_small": [], "samples": []}
    return replace(report, memory=memory | {"needs": NEEDS | changes})


def test_needed_memory_is_told_in_sentences() -> None:
    reports = [
        needing(passing()),
        needing(passing(), measured=False, base=None),
        needing(passing(), measured=False, oom_killed=True),
    ]
    made = page(reports)
    check_figures(made, reports)
    text = " ".join(made.text.split())
    assert (
        "gguf:q4_0 needs 71.0 MB with a KV cache of 1.6 MB at 512 tokens; it may have 60.0 MB, "
        "which is too little. Python and the engine took 44.5 MB before the model was opened. Of "
        "the sizes that pi4 is sold in, it fits into 1.07 GB and 2.15 GB. The limit was enforced."
    ) in text
    assert "at least 71.0 MB for its weights and a KV cache of 1.6 MB at 512 tokens, by its" in text
    assert "the system ended it there. Its weights and a KV cache of 1.6 MB" in text
    assert "{" not in text.split("color-scheme: light; }")[-1].partition("Formats and devices")[2]
    roomy = page([needing(passing(), holds=True, ram=10**9)]).text
    assert "it may have 1.00 GB, which holds it." in " ".join(roomy.split())


def test_speed_kernels_and_commands() -> None:
    speed = {
        "load_seconds": 0.25,
        "prefill_tokens_per_second": 123.456,
        "decode_tokens_per_second": 45.6,
        "settings": {"prefill": 128, "decode": 32, "depth": 16, "rounds": 3},
        "memory": {"anonymous": 1, "file": 2, "resident": 98_765_432},
    }
    engine = {"engine": "ONNX Runtime", "version": "onnxruntime 1.31.1", "threads": "1"}
    kernels = {"QMoE 4 bits": "float activations"}
    first = replace(passing(), speed=speed, repeat="emo-export validate again")
    first = replace(first, engine=engine)
    second = replace(first, target="onnx:int8", speed=None, machine={**first.machine, "x": "1"})
    first = replace(first, kernels=kernels, machine={**first.machine, "x": "2"})
    crashed = replace(passing(), target="onnx:f32", rows=(), machine={}, command="")
    made = page([first, second, crashed])
    check_figures(made, [first, second, crashed])
    text = " ".join(made.text.split())
    assert "Medians of 3: a prompt of 128 tokens at once; 32 tokens one by one after 16." in text
    assert text.count("QMoE 4 bits: float activations") == 1
    assert "CPU features fp asimd crc32" in text.replace("featuresfp", "features fp")
    assert text.count("emo-export validate again") == 2 and text.count("To repeat it:") == 2


@pytest.mark.parametrize("scale", [1e-6, 0.001, 0.3])
def test_the_axis_of_the_bars_is_in_per_cent(scale: float) -> None:
    made = within_limits(report())
    domains = [
        replace(d, perplexity_ratio=1 + scale * (1 + i)) for i, d in enumerate(made.rows[2].domains)
    ]
    rows = tuple(replace(r, domains=tuple(domains)) if r.domains else r for r in made.rows)
    text = html([result_on(rows=rows)], Path("x"), None, None, WHEN)
    ticks = re.findall(r'<text class="tick" x="([\d.]+)"[^>]*>([^<]*) %</text>', text)
    (zero,) = [float(x) for x, label in ticks if label == "0"]
    steps = {round(float(label) / (float(x) - zero), 9) for x, label in ticks if label != "0"}
    (bar,) = re.findall(r'<rect class="bar" x="[\d.]+" y="[\d.]+" width="([\d.]+)"', text)[-1:]
    assert len(ticks) >= 2 and max(steps) <= 1.02 * min(steps)
    assert math.isclose(min(steps) * float(bar), 100 * scale * len(domains), rel_tol=0.02)
