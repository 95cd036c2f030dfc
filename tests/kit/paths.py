"""Where the committed test data lies."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden"
NANO = ROOT / "examples" / "emo-nano"
GOLDENS = ("base", "pruned", "densefirst", "sharded")
