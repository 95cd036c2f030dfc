"""Temporary folders that emulated devices can't use are told, not stumbled over."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from emo_export.errors import EmoExportError
from emo_export.runtimes.devices.emulated.emulation import Emulation, Version
from emo_export.runtimes.devices.profiles import PROFILES
from emo_export.runtimes.devices.watched import WatchedDevice, emulated_device


def emulated(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> WatchedDevice:
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    nowhere = Path("/nowhere")
    versions = {name: Version("1") for name in ("onnxruntime", "llama.cpp")}
    made = Emulation(nowhere, nowhere, nowhere, nowhere, nowhere, versions)
    return emulated_device(PROFILES["pi4"], made)


def test_a_temporary_folder_that_pythonpath_cannot_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a:b").mkdir()
    device = emulated(tmp_path / "a:b", monkeypatch)
    with pytest.raises(EmoExportError, match="set TMPDIR to another folder"):
        device.command_line([])
    device.close()
    assert not list((tmp_path / "a:b").iterdir())


def test_a_temporary_folder_that_takes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = emulated(tmp_path, monkeypatch)
    (folder,) = tmp_path.iterdir()
    (folder / "runtime.zip").symlink_to("/dev/full/nowhere")
    with pytest.raises(EmoExportError, match=r"runtime\.zip: cannot be written"):
        device.command_line([])
    device.close()
