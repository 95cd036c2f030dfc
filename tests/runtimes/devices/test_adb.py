"""The command adb: its listing, its refusals, exit codes, and a phone that goes away."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from emo_export.errors import EmoExportError, MissingDependencyError
from emo_export.runtimes.devices.adb.adb import Adb, choose, phones
from tests.kit.phones import READY, Phone, plug_in

NO_RIGHTS = (
    "????????????           no permissions (user in plugdev group; are your udev rules wrong?); "
    "see [http://developer.android.com/tools/device.html] usb:3-1 transport_id:4\n"
)
OVER_NETWORK = "192.168.1.5:5555       device product:oriole model:Pixel_6 device:oriole\n"


@pytest.fixture
def phone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Phone:
    return plug_in(tmp_path / "phone", monkeypatch)


def test_reads_the_listing_of_adb() -> None:
    said = "* daemon started successfully\nList of devices attached\n"
    found = phones(f"{said}{READY}{OVER_NETWORK}{NO_RIGHTS}XYZ  unauthorized usb:1-1\n\n")
    assert [tuple(p) for p in found] == [
        ("R5CX", "device", "Pixel_9"),
        ("192.168.1.5:5555", "device", "Pixel_6"),
        ("????????????", "no permissions", ""),
        ("XYZ", "unauthorized", ""),
    ]
    assert phones("List of devices attached\n\n") == []


@pytest.mark.parametrize(
    ("listing", "serial", "expected"),
    [
        ("", None, "no phone .it sees none.*USB debugging"),
        (READY, "ABC", "no phone ABC .it sees R5CX"),
        (READY + OVER_NETWORK, None, "several phones: R5CX .*5555.*--device adb:SERIAL"),
        ("R5CX unauthorized usb:1-2\n", None, "'unauthorized'.*allow USB debugging"),
        ("R5CX offline\n", "R5CX", "'offline'.*adb reconnect"),
        (NO_RIGHTS, None, "'no permissions'.*udev"),
        ("R5CX rescue\n", None, "'rescue'.*adb devices -l"),
    ],
)
def test_says_why_a_phone_cannot_be_used(listing: str, serial: str | None, expected: str) -> None:
    with pytest.raises(EmoExportError, match=expected):
        choose(phones(f"List of devices attached\n{listing}"), serial)


def test_takes_the_phone_that_is_named(phone: Phone) -> None:
    phone.tell("listing", READY + OVER_NETWORK)
    assert Adb("192.168.1.5:5555").phone.model == "Pixel_6"


def test_names_the_command_that_installs_adb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(MissingDependencyError, match="sudo apt install adb"):
        Adb(None)


def test_refuses_an_android_that_tells_no_exit_codes(phone: Phone) -> None:
    phone.tell("features", "cmd\n")
    with pytest.raises(EmoExportError, match="Android is older than 7"):
        Adb(None)


@pytest.mark.parametrize(
    ("script", "code"),
    [
        ("true", 0),
        ("exit 3", 3),
        ("false; exit 255", 255),
        ("sh -c 'kill -ILL $$'", -signal.SIGILL),
        ("sh -c 'kill -KILL $$'", -signal.SIGKILL),
        ("nosuchprogram", 127),
    ],
)
def test_brings_exit_codes_and_signals_home(phone: Phone, script: str, code: int) -> None:
    assert Adb(None).shell(script).code == code


def test_keeps_stdout_and_stderr_apart_and_whole(phone: Phone) -> None:
    done = Adb(None).shell("printf 'a b\\n\\nc'; echo 'no & yes' >&2; printf \"it's\\n\" >&2")
    assert (done.code, done.stdout, done.stderr) == (0, "a b\n\nc", "no & yes\nit's\n")


def test_says_that_a_phone_went_away(phone: Phone) -> None:
    adb = Adb(None)
    phone.tell("lost", "sleep 5")
    with pytest.raises(
        EmoExportError, match=r"connection to the phone R5CX ended .*exited with 255"
    ):
        adb.shell("sleep 5")


def test_says_why_nothing_could_be_copied(phone: Phone, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"x")
    with pytest.raises(EmoExportError, match=r"could not copy .*file.*No such file"):
        Adb(None).push(file, "/data/local/tmp/nowhere/file")
