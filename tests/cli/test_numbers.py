"""Numbers that no clock and no budget can use."""

from __future__ import annotations

import click
import pytest

from emo_export.cli.numbers import SECONDS, TOKENS, Within


@pytest.mark.parametrize("given", ["nan", "inf", "-inf", "1e300", "1e10", "0", "-1", "soon"])
def test_no_clock_takes_it(given: str) -> None:
    with pytest.raises(click.BadParameter):
        SECONDS.convert(given, None, None)


def test_a_number_in_the_range_is_taken() -> None:
    assert SECONDS.convert("0.5", None, None) == 0.5
    assert Within(1, 32).convert("4.5", None, None) == 4.5
    with pytest.raises(click.BadParameter, match="nan is not a number"):
        Within(1, 32).convert("nan", None, None)


def test_no_text_has_so_many_tokens() -> None:
    with pytest.raises(click.BadParameter):
        TOKENS.convert("9" * 25, None, None)
