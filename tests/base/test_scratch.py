"""A temporary folder goes with its owner, or is removed by the next process."""

from __future__ import annotations

import multiprocessing
import signal
import tempfile
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from emo_export.base.scratch import PREFIX, Scratch, remove_abandoned


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def hold(ready: Event) -> None:
    with Scratch("other"):
        ready.set()
        signal.pause()


def test_a_living_owner_keeps_it_and_a_killed_one_does_not(place: Path) -> None:
    fork = multiprocessing.get_context("fork")
    ready = fork.Event()
    other = fork.Process(target=hold, args=(ready,), daemon=True)
    other.start()
    try:
        assert ready.wait(60)
        with Scratch("mine") as mine:
            remove_abandoned()
            assert mine.is_dir() and len(list(place.iterdir())) == 2
    finally:
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
