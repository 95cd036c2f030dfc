"""Readers of strangers' files: the corpus again, bytes of it changed, and cases made by hand.

The command `python -m tests.fuzz` tries many more.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from emo_export.errors import EmoExportError
from tests.fuzz.hostile import CASES, LARGE
from tests.fuzz.readers import READERS, attempt, kept, lay, within_limits

SHORT = settings(
    max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.mark.parametrize("name", READERS)
def test_the_corpus_is_read_or_refused(name: str, tmp_path: Path) -> None:
    folder = lay(READERS[name], tmp_path / "folder")
    attempt(READERS[name], folder, b"")  # imports
    with within_limits():
        for content in kept(name):
            attempt(READERS[name], folder, content)


@pytest.mark.parametrize("name", READERS)
@SHORT
@given(data=st.data())
def test_changed_bytes_are_read_or_refused(name: str, tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray(data.draw(st.sampled_from(kept(name))))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, max(0, len(content) - 1)))
        content[place : place + data.draw(st.integers(0, 8))] = data.draw(
            st.binary(max_size=8)
            | st.sampled_from([b"\xff" * 8, bytes(8), b"-1", b"9" * 20, b"[" * 99])
        )
    attempt(READERS[name], lay(READERS[name], tmp_path / "folder"), bytes(content))


@pytest.mark.parametrize(
    ("reader", "case"),
    [
        pytest.param(name, case, marks=[pytest.mark.slow] if (name, case) in LARGE else [])
        for name, cases in CASES.items()
        for case in cases
    ],
)
def test_a_hostile_file_is_refused(reader: str, case: str, tmp_path: Path) -> None:
    made = CASES[reader][case]
    content = made if isinstance(made, bytes) else made()
    folder = lay(READERS[reader], tmp_path / "folder")
    attempt(READERS[reader], folder, b"")  # imports
    (tmp_path / "outside").write_bytes(b"kept")
    with within_limits():
        said = attempt(READERS[reader], folder, content)
    # What can't be gone on with is begun anew, and a checkpoint is inspected as far as it can be.
    assert said or reader == "resume"
    assert (tmp_path / "outside").read_bytes() == b"kept"


@pytest.mark.parametrize("kind", ["pipe", "folder", "device", "socket", "loop", "nothing"])
@pytest.mark.parametrize("name", sorted(set(READERS) - {"onnx-bytes", "resume"}))
def test_what_is_no_file_is_refused(
    name: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = READERS[name]
    folder = lay(reader, tmp_path / "f")
    path = folder / reader.name
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "socket":
        monkeypatch.chdir(folder)  # a socket's name is short
        with socket.socket(socket.AF_UNIX) as ours:
            ours.bind(reader.name)
    elif kind == "loop":
        path.symlink_to(path.name)
    with within_limits(), pytest.raises(EmoExportError):
        reader.read(path)


@pytest.mark.parametrize("name", ["safetensors", "gguf", "golden", "manifest"])
def test_links_to_files_are_files(name: str, tmp_path: Path) -> None:
    folder = lay(READERS[name], tmp_path / "f")
    other = tmp_path / "other"
    other.write_bytes(READERS[name].whole(kept(name)[-1]))
    (folder / READERS[name].name).symlink_to(other)
    READERS[name].read(folder / READERS[name].name)
    (folder / READERS[name].name).unlink()
    os.link(other, folder / READERS[name].name)
    READERS[name].read(folder / READERS[name].name)
