"""How many threads an engine may be asked for."""

from __future__ import annotations

import pytest

from emo_export.base.threads import MOST, threads_for
from emo_export.errors import EmoExportError


def test_what_was_asked_for_is_taken_where_engines_bear_it() -> None:
    assert threads_for(1) == 1
    assert threads_for(MOST) == MOST
    assert 1 <= threads_for(None) <= MOST


@pytest.mark.parametrize("asked", [-1, 0, MOST + 1, 10**6])
def test_more_than_an_engine_bears_is_refused(asked: int) -> None:
    with pytest.raises(EmoExportError, match=f"threads is {asked}, expected 1 to 512"):
        threads_for(asked)
