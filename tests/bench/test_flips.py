"""Random flipped bits of a real package, small enough to wait for; the command tries 100."""

from __future__ import annotations

import pytest

from tests.bench.flips import main
from tests.kit.packages import quantised_package


@pytest.mark.slow
def test_no_bit_is_lost(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(quantised_package()), "--flips", "40", "--seed", "3"]) == 0
    assert "| 40 | 40 |" in capsys.readouterr().out
