"""A package to serve, and what a client reads of a stream."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kit.packages import package
from tests.kit.paths import NANO
from tests.service.streams import TARGETS


@pytest.fixture(scope="module")
def nano() -> Path:
    return package(NANO, TARGETS, "--no-validate")
