"""A file or folder takes its name when it is whole; what a killed run left is told apart."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path

import pytest

from emo_export.errors import EmoExportError
from emo_export.files import staging as module
from emo_export.files.staging import RESUME, staging


def is_ours(path: Path) -> bool:
    return path.is_dir() and ((path / "whole").exists() or not any(path.iterdir()))


def fill(place: Path, text: str = "new") -> None:
    place.mkdir(exist_ok=True)
    (place / "whole").write_text(text)


def make(out: Path, overwrite: bool = False, text: str = "new") -> None:
    with staging(out, overwrite, is_ours) as place:
        fill(place, text)


@contextmanager
def forked(work: Callable[[], None]) -> Iterator[int]:
    """Runs `work` in a process, killed at the end; yields its number."""
    process = get_context("fork").Process(target=work)
    process.start()
    assert process.pid is not None
    try:
        yield process.pid
    finally:
        process.kill()
        process.join()


def test_it_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    with staging(out, False, is_ours) as place:
        fill(place)
        assert not out.exists()
    assert (out / "whole").read_text() == "new"
    with pytest.raises(KeyboardInterrupt), staging(out, True, is_ours) as place:
        fill(place, "half")
        raise KeyboardInterrupt
    assert (out / "whole").read_text() == "new"
    assert [p.name for p in out.parent.iterdir()] == ["out"]


@pytest.mark.parametrize("exchange", [True, False])
def test_overwriting_keeps_the_old_one_until_the_new_one_is_whole(
    exchange: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not exchange:  # as on file systems that know no such rename
        monkeypatch.setattr(module, "_renamed", lambda one, other, flag: False)
    out = tmp_path / "out"
    make(out, text="old")
    with pytest.raises(EmoExportError, match=r"exists already; .* or add --overwrite"):
        make(out)
    with staging(out, True, is_ours) as place:
        fill(place)
        assert (out / "whole").read_text() == "old"
    assert (out / "whole").read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_what_is_not_ours_stays(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for overwrite, said in ((False, "was not made by this"), (True, "leaves it alone")):
        for name in ("out", "link"):
            with pytest.raises(EmoExportError, match=said):
                make(tmp_path / name, overwrite)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link", "out"]


def test_who_came_first_wins(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(EmoExportError, match="exists already"), staging(out, False, is_ours) as at:
        fill(at)
        fill(out, "winner")
    assert (out / "whole").read_text() == "winner"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def hold(out: Path, told: Path) -> None:
    with staging(out, False, is_ours) as place:
        fill(place, "theirs")
        (place.parent / RESUME).mkdir()
        told.touch()
        signal.pause()


def test_two_at_once_and_one_that_was_killed(tmp_path: Path) -> None:
    out, told = tmp_path / "out", tmp_path / "told"
    with forked(lambda: hold(out, told)) as process:
        while not told.exists():
            pass
        with pytest.raises(EmoExportError, match=rf"another emo-export .*\(process {process}\)"):
            make(out)
        assert (tmp_path / ".out.partial" / "out" / "whole").read_text() == "theirs"
    # Its lock went with it, whatever the file in it says.
    with staging(out, False, is_ours, lambda left: (left / RESUME).is_dir()) as place:
        assert (place / "whole").read_text() == "theirs"
        (place / "whole").write_text("gone on")
    assert (out / "whole").read_text() == "gone on"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "told"]


def test_a_refusal_keeps_what_can_be_gone_on_with(tmp_path: Path) -> None:
    out, left = tmp_path / "out", tmp_path / ".out.partial"
    make(out, text="old")
    with pytest.raises(KeyboardInterrupt), staging(out, True, is_ours) as place:
        (place.parent / RESUME).mkdir()
        fill(place, "half")
        raise KeyboardInterrupt
    with pytest.raises(EmoExportError, match="exists already"):
        make(out)
    assert (left / "out" / "whole").read_text() == "half" and (left / RESUME).is_dir()
    make(out, True)
    assert (out / "whole").read_text() == "new" and not left.exists()


def test_what_a_kill_between_two_renames_left_is_put_back(tmp_path: Path) -> None:
    out, left = tmp_path / "out", tmp_path / ".out.partial"
    make(out, text="old")
    left.mkdir()
    out.rename(left / "old")
    fill(left / "out")
    with pytest.raises(EmoExportError, match="exists already"):
        make(out)
    assert (out / "whole").read_text() == "old" and not left.exists()


def test_names_that_a_pattern_would_take_otherwise(tmp_path: Path) -> None:
    out = tmp_path / "out[1]*"
    make(out, text="old")
    make(out, True)
    assert (out / "whole").read_text() == "new" and [p.name for p in tmp_path.iterdir()] == [
        out.name
    ]


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EmoExportError, match=r"cannot be made \(File exists\)"):
        make(tmp_path / "file" / "out")
