"""Who may read and write what is made."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from emo_export.base.disk import make_private, write_whole
from emo_export.converters.placed_file import PlacedFile, Region
from emo_export.files.staging import staging


@pytest.fixture(params=[0o022, 0o077, 0o002], ids=oct)
def mask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_files_are_made_as_the_umask_says(mask: int, tmp_path: Path) -> None:
    write_whole(tmp_path / "whole", b"x")
    placed = PlacedFile(tmp_path / "placed", 1, {"a": Region(0, 1, 1)})
    placed.abort()
    with staging(tmp_path / "out", False, lambda place: True) as folder:
        folder.mkdir()
        (folder / "file").write_bytes(b"x")
    files = [tmp_path / "whole", tmp_path / "placed", tmp_path / "out" / "file"]
    assert {mode(path) for path in files} == {0o666 & ~mask}
    assert mode(tmp_path / "out") == 0o777 & ~mask


def test_caches_are_their_users_alone(mask: int, tmp_path: Path) -> None:
    cache = tmp_path / "above" / "cache"
    make_private(cache)
    assert mode(cache) == 0o700
    make_private(cache)
    assert not mode(tmp_path / "above") & 0o007 & mask
