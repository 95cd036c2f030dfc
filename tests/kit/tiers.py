"""Which parameters of a test belong to the default tier."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def slow_beyond(first: Collection[Any], every: Iterable[Any]) -> list[Any]:
    """`every` as parameters; those that are not among `first` make slow tests.

    A tuple stands for several parameters of one test.
    """
    return [
        pytest.param(*(one if isinstance(one, tuple) else (one,)), marks=marks)
        for one in every
        for marks in [() if one in first else pytest.mark.slow]
    ]
