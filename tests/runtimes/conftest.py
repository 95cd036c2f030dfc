"""A model of a test's own, and a folder for copies of its weights."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.kit.exporting import exported
from tests.kit.paths import NANO


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An export of its own for one test, free to change."""
    return Path(shutil.copytree(exported(NANO, "onnx:int4"), tmp_path / "model"))


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"
