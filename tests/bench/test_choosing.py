"""The bench of an export that chooses its experts says what was read and held."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bench.choosing import PASS, measure, table
from tests.bench.synthetic import Size

pytestmark = pytest.mark.slow  # 20 s of CPU
ASKED = {
    "specs": ["gguf:q8_0"],
    "keep": "4",
    "tokens": 1024,
    "heldout_tokens": 512,
    "golden": True,
}


@pytest.mark.parametrize(("method", "most"), [("router", 1), ("reap", 2)])
def test_kept_and_dropped_experts_are_told_apart(method: str, most: int, tmp_path: Path) -> None:
    run = measure(Size(128, 64, 1, 16, 512), ASKED | {"method": method}, 4 << 30, tmp_path)
    assert run["passed"] and not list(tmp_path.iterdir())
    kept, dropped = run["experts"]["kept"], run["experts"]["dropped"]
    assert (kept["bytes"], dropped["bytes"]) == (4 * 3 * 128 * 64 * 4, 12 * 3 * 128 * 64 * 4)
    # The full model's probes read those that are dropped.
    assert kept["most"] == most and kept["read"] == most * kept["bytes"]
    assert dropped["most"] == 1
    (stage,) = (stage for stage in run["stages"] if stage["name"] == PASS)
    assert stage["read"] >= run["read"] > 0
    assert "kept experts" in table(run)
