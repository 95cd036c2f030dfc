"""Prepacked copies that something keeps from being made: interrupts, disks, another process."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from emo_export.errors import EmoExportError
from emo_export.runtimes.ort import prepacked
from emo_export.runtimes.ort.prepacked import prepacked_copy
from tests.kit.prepacked_copies import CHILD, child, silent, unfinished
from tests.kit.tiers import slow_beyond

MIB = 1 << 20


def test_a_folder_that_changes_meanwhile_is_refused(folder: Path, cache: Path) -> None:
    process = child(CHILD, folder, cache, 1)  # a group for every node: takes seconds
    while not any(list(path.glob("*.data")) for path in unfinished(cache)):
        assert process.poll() is None
        time.sleep(0.002)
    os.utime(folder / "model.onnx.data", ns=(1, 1))
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1 and "changed while it was prepacked; run again" in err
    assert list(cache.glob("model-*")) == unfinished(cache) == []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_an_interrupted_build_leaves_nothing_under_the_name(
    number: signal.Signals, folder: Path, cache: Path
) -> None:
    process = child(CHILD, folder, cache, 1)  # a group for every node: takes seconds
    while not any(list(path.glob("*.data")) for path in unfinished(cache)):
        assert process.poll() is None
        time.sleep(0.002)
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode != 0
    assert len(unfinished(cache)) == (number == signal.SIGKILL)
    assert not list(cache.glob("model-*"))
    mine = cache / "notes"
    mine.mkdir()
    assert prepacked_copy(folder, cache, lambda text: None).is_dir()
    assert unfinished(cache) == [] and mine.is_dir()


@pytest.mark.slow
def test_two_processes_make_one_copy(folder: Path, cache: Path) -> None:
    both = [child(CHILD, folder, cache, MIB) for _ in range(2)]
    done = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], done
    assert len({out for out, _ in done}) == 1
    assert "".join(err for _, err in done).count("prepacked in") == 1
    assert len(list(cache.glob("model-*"))) == 1 and unfinished(cache) == []


def test_a_short_disk_is_told_before_the_work(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = shutil.disk_usage
    monkeypatch.setattr(shutil, "disk_usage", lambda path: real(path)._replace(free=5_000_000))
    with pytest.raises(EmoExportError) as error:
        prepacked_copy(folder, cache, silent)
    assert "needs up to 62 MB, its disk has 5 MB free; name a folder on another disk" in str(
        error.value
    )
    assert str(cache) in str(error.value)
    assert [path for path in cache.iterdir() if path.is_dir()] == []


@pytest.mark.parametrize("limit", [3 * MIB, 20 * MIB])
def test_a_disk_that_fills_leaves_nothing(limit: int, folder: Path, cache: Path) -> None:
    code = f"import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
    process = child(code + CHILD, folder, cache, 4 * MIB)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "EmoExportError" in err.splitlines()[-1], err
    assert list(cache.glob("model-*")) == unfinished(cache) == []


@pytest.mark.parametrize("kind", slow_beyond(["link"], ["file", "link", "broken link"]))
def test_what_stands_under_our_names_is_replaced(
    kind: str, folder: Path, cache: Path, tmp_path: Path
) -> None:
    place = prepacked_copy(folder, cache, lambda text: None)
    shutil.rmtree(place)
    other = tmp_path / "other"
    for path in (place, cache / f"{prepacked.UNFINISHED}x"):
        path.write_bytes(b"") if kind == "file" else path.symlink_to(other)
    if kind == "link":
        other.mkdir()
        (other / "notes").write_bytes(b"")
    said: list[str] = []
    assert prepacked_copy(folder, cache, said.append) == place
    assert said[0] == f"{place}: has no record of what it is; making it again"
    assert unfinished(cache) == [] and not place.is_symlink()
    assert (other / "notes").exists() == (kind == "link")
