"""`pytest --seconds`: what it leaves out, and in which order files come."""

from __future__ import annotations

import pytest

from tests.kit import time_left


@pytest.mark.parametrize("left", [60.0, -1.0])
def test_no_test_begins_too_late(monkeypatch: pytest.MonkeyPatch, left: float) -> None:
    for name in ("EMO_EXPORT_TESTS_END", "EMO_EXPORT_TESTS_DAY"):
        monkeypatch.setenv(name, "")
    time_left.start(left)
    if left > 0:
        time_left.check("tests/test_a.py::test_b")
        return
    with pytest.raises(pytest.skip.Exception, match=r"python -m pytest .* tests/test_a.py"):
        time_left.check("tests/test_a.py::test_b")


@pytest.mark.slow
def test_a_day_has_its_order(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    def order(day: str) -> list[str]:
        monkeypatch.setenv("EMO_EXPORT_TESTS_DAY", day)
        items = list(request.session.items)
        time_left.shuffle(items)
        files = [str(item.path) for item in items]
        assert sorted(files, key=files.index) == files  # a file stays together
        return files

    days = [order(f"2026-12-{day:02}") for day in range(1, 20)]
    assert days[0] == order("2026-12-01")
    if len(set(days[0])) > 1:  # else this file runs alone
        assert any(day != days[0] for day in days)
