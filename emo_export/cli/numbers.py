"""Numbers that options take."""

from __future__ import annotations

import math
from typing import Any

import click


class Within(click.FloatRange):
    """A range that NaN is not in: it is neither below nor above anything."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """The number. Raises click's BadParameter for another text, and out of the range."""
        found = float(super().convert(value, param, ctx))
        if math.isnan(found):
            self.fail(f"{value} is not a number.", param, ctx)
        return found


SECONDS = Within(0, 1e9, min_open=True)
"""A time limit; the system's clocks take no more than some 9e9."""

TOKENS = click.IntRange(2, 10**12)
"""Of text to read: more than any text has, and what every library can count."""
