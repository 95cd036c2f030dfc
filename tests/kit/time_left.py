"""`pytest --seconds N`: begin no test later than that, and say which were left out.

So that CI runs of the slow tiers what its time allows, on whatever machine. Files come in another
order every day: what was left out today has its turn.
"""

from __future__ import annotations

import hashlib
import os
import time
from datetime import UTC, datetime

import pytest

HELP = "begin no test after so many seconds; the rest is skipped, and files are shuffled by the day"
_ENDS, _DAY = "EMO_EXPORT_TESTS_END", "EMO_EXPORT_TESTS_DAY"


def start(seconds: float | None) -> None:
    """Count from now on, in this process and in workers to come; None: no limit."""
    if seconds is not None:
        os.environ[_ENDS] = str(time.time() + seconds)
        os.environ[_DAY] = datetime.now(UTC).date().isoformat()


def shuffle(items: list[pytest.Item]) -> None:
    """Put files in the order of the day, the same in every worker; a file stays together."""
    if day := os.environ.get(_DAY):
        items.sort(key=lambda item: hashlib.sha256(f"{day} {item.path}".encode()).digest())


def check(test: str) -> None:
    """Skip a test for which no time is left."""
    if time.time() > float(os.environ.get(_ENDS, "inf")):
        file = test.partition("::")[0]
        pytest.skip(f"no time is left of --seconds; to run it: python -m pytest -m '' {file}")
