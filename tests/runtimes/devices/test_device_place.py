"""The cache folder of the emulated devices: whose it is, one writer at a time, only whole parts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from emo_export.errors import EmoExportError
from emo_export.runtimes.devices.emulated.emulation import Emulation, Version
from emo_export.runtimes.devices.emulated.fetch import Progress
from emo_export.runtimes.devices.emulated.place import (
    MARK,
    UNFINISHED,
    locked,
    making,
    versions_of,
    write_versions,
)
from emo_export.runtimes.devices.profiles import PROFILES
from emo_export.runtimes.devices.watched import WatchedDevice, emulated_device
from tests.kit.command import Emo
from tests.kit.processes import gone, wait_for

QUIET = Progress(lambda text: None)
pytestmark = pytest.mark.usefixtures("devices")


def test_folders_of_others_are_left_alone(emo: Emo, devices: Path) -> None:
    devices.mkdir()
    (devices / "thesis.txt").write_text("mine")
    for command in ("setup", "clean"):
        done = emo("device", command)
        assert done.code == 2
        assert "holds thesis.txt and was not made by `emo-export device setup`" in done.err
    assert (devices / "thesis.txt").read_text() == "mine"


def test_clean(emo: Emo, devices: Path) -> None:
    assert "nothing is set up" in emo("device", "clean").out
    with locked(devices, QUIET.on_stage), making(devices, "part") as part:
        (part / "file").write_bytes(bytes(200_000))
        write_versions(part, {"x": Version("1")})
    assert versions_of(devices / "part") == {"x": Version("1")}
    done = emo("device", "clean")
    assert done.code == 0 and f"removed {devices}: 0.2 MB" in done.out
    assert not devices.exists()


def test_what_a_killed_setup_left_is_swept(devices: Path) -> None:
    with locked(devices, QUIET.on_stage):
        (devices / f"{UNFINISHED}abc" / "x").mkdir(parents=True)
    with locked(devices, QUIET.on_stage):
        assert [path.name for path in devices.iterdir()] == [MARK]


def test_a_part_that_fails_leaves_nothing(devices: Path) -> None:
    with (
        pytest.raises(KeyboardInterrupt),
        locked(devices, QUIET.on_stage),
        making(devices, "part") as part,
    ):
        (part / "half").touch()
        raise KeyboardInterrupt
    assert [path.name for path in devices.iterdir()] == [MARK]


HOLDER = """
import sys, time
from pathlib import Path
from emo_export.runtimes.devices.emulated.place import locked
with locked(Path(sys.argv[1]), print):
    print("held", flush=True)
    time.sleep(0.5)
"""


def test_one_process_at_a_time(devices: Path) -> None:
    command = [sys.executable, "-c", HOLDER, str(devices)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None and first.stdout.readline() == "held\n"
        second = subprocess.run(command, capture_output=True, text=True, check=True)
        assert first.wait(10) == 0
    assert second.stdout.startswith("another process is at work in")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_what_is_fetching(
    tmp_path: Path, devices: Path, number: signal.Signals
) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "dpkg-deb").touch(0o755)
    (tools / "apt-get").write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid\nsleep 60\n")
    (tools / "apt-get").chmod(0o755)
    environment = os.environ | {"PATH": f"{tools}:{os.environ['PATH']}"}
    command = [sys.executable, "-m", "emo_export.cli.main", "device", "setup"]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        wait_for(lambda: (tmp_path / "pid").exists() and bool((tmp_path / "pid").read_text()))
        process.send_signal(number)
        assert process.wait(10) == 130
    assert gone(int((tmp_path / "pid").read_text()))
    assert [path.name for path in devices.iterdir()] == [MARK]


@pytest.mark.parametrize("mark", [":", "="])
def test_paths_that_programs_would_take_apart(
    emo: Emo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mark: str
) -> None:
    monkeypatch.setenv("EMO_EXPORT_DEVICES", str(tmp_path / f"a{mark}b"))
    done = emo("device", "setup")
    assert done.code == 2 and f"a{mark}b: a {mark} in a path" in done.err


# --- temporary folders that emulated devices can't use ---


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
