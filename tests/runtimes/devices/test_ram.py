from __future__ import annotations

import pytest

from emo_export.base.ram_size import parse_size, shown
from emo_export.errors import EmoExportError


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1GB", 10**9),
        ("4 gb", 4 * 10**9),
        ("1GiB", 1 << 30),
        ("1.5GiB", 3 << 29),
        ("512MB", 512 * 10**6),
        ("90MiB", 90 << 20),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "4", "4G", "-1GB", "1e3MB", "GB", "1..5GB", "٤GB", "0GB"])
def test_refused(text: str) -> None:
    with pytest.raises(EmoExportError, match=r"is not a size|no memory that"):
        parse_size(text)


def test_too_many_digits() -> None:
    with pytest.raises(EmoExportError, match="no memory that a model could have"):
        parse_size("9" * 400 + "GB")


def test_shown() -> None:
    assert [shown(n) for n in (2_309_999_999, 999_400_000, 1_500)] == [
        "2.31 GB",
        "999.4 MB",
        "0.0 MB",
    ]
