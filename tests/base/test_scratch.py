"""A temporary folder goes with its owner, or is removed by the next process."""

from __future__ import annotations

import multiprocessing
import signal
import tempfile
from pathlib import Path

import pytest

from emo_export.base.scratch import PREFIX, Scratch, remove_abandoned


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def hold() -> None:
    with Scratch("held"):
        signal.pause()


def test_a_living_owner_keeps_it_and_a_killed_one_does_not(place: Path) -> None:
    other = multiprocessing.get_context("fork").Process(target=hold)
    other.start()
    while not list(place.iterdir()):
        pass
    with Scratch("mine") as mine:
        remove_abandoned()
        assert mine.is_dir() and len(list(place.iterdir())) == 2
    other.kill()
    other.join()
    assert len(list(place.iterdir())) == 1
    with Scratch("mine") as mine:
        assert list(place.iterdir()) == [mine]
    assert not list(place.iterdir())


def test_what_is_no_folder_of_ours_stays(place: Path) -> None:
    kept = place / "kept"
    kept.mkdir()
    (place / f"{PREFIX}link").symlink_to(kept)
    (place / f"{PREFIX}file").touch()
    (place / "emo-export-else").mkdir()
    before = sorted(place.iterdir())
    remove_abandoned()
    assert sorted(place.iterdir()) == before


def test_closing_twice_and_without_with(place: Path) -> None:
    scratch = Scratch("two")
    (scratch.path / "file").touch()
    scratch.close()
    scratch.close()
    assert not list(place.iterdir())
