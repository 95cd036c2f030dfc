"""The names of ggml's types as parameters of tests."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from emo_export.converters.gguf.formats import GGML_FORMATS

GRIDS = [name for name in GGML_FORMATS if name.startswith(("iq2", "iq3"))]
"""Types below 4 bits: ggml makes their grids at first use, for seven seconds in each process."""


def each(names: Iterable[str]) -> list[Any]:
    """Parameters; those of types whose grids ggml makes at first are slow."""
    return [
        pytest.param(name, marks=pytest.mark.slow) if name in GRIDS else name
        for name in sorted(names)
    ]
