"""Copying a package over ssh: from where it broke off, damaged, with too little room."""

from __future__ import annotations

import os
import shutil
import sys
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from emo_export.errors import EmoExportError
from emo_export.files.manifest import digest
from emo_export.runtimes.devices.far.files import part_of
from emo_export.runtimes.devices.ssh.link import SshLink
from emo_export.runtimes.devices.ssh.remote import SshDevice
from tests.kit.processes import wait_for
from tests.kit.ssh_server import SshServer
from tests.runtimes.devices.ssh.conftest import BIG
from tests.runtimes.devices.ssh.far import put_program, running, targets_of

pytestmark = pytest.mark.slow


class Counting(SshLink):
    """A connection that counts what it sends."""

    sent = 0

    def ask(self, request: Mapping[str, Any], body: bytes | memoryview = b"") -> dict[str, Any]:
        self.sent += len(body)
        return super().ask(request, body)


def test_a_copy_goes_on_where_the_connection_was_lost(
    server: SshServer, big: Path, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    links: list[Counting] = []

    def link(*arguments: Any) -> SshLink:
        links.append(Counting(*arguments))
        return links[-1]

    def part() -> int:
        return sum(path.stat().st_size for path in server.cache.glob("packages/*/golden*.part"))

    def cut_it() -> None:
        wait_for(lambda: part() > BIG // 8)
        server.cut()

    monkeypatch.setattr("emo_export.runtimes.devices.ssh.remote.SshLink", link)
    targets = targets_of(big)
    cutter = threading.Thread(target=cut_it)
    cutter.start()
    device = SshDevice(server.url, said.append)
    with pytest.raises(EmoExportError, match="connection was lost; start again"):
        device.place(big, targets)
    cutter.join()
    device.close()
    wait_for(lambda: not running(server, "runtime.zip") and not list(server.cache.glob("runs/*")))
    there = part()
    assert BIG // 8 < there < BIG
    again = SshDevice(server.url, said.append)
    try:
        place = Path(again.place(big, targets))
    finally:
        again.close()
    others = sum(path.stat().st_size for path in place.rglob("*") if path.is_file())
    others -= sum((place / name).stat().st_size for name in (".digests.json", ".lock"))
    assert links[-1].sent == others - there
    assert (place / "golden.npz").read_bytes() == (big / "golden.npz").read_bytes()
    assert part() == 0


def test_a_part_with_other_bytes_is_found_out(
    server: SshServer, big: Path, device: SshDevice, said: list[str]
) -> None:
    place = Path(device.place(big, targets_of(big)))
    device.close()
    (place / "golden.npz").unlink()
    part_of(place / "golden.npz", digest(big / "golden.npz")).write_bytes(b"x" * 1000)
    device.place(big, targets_of(big))
    assert (place / "golden.npz").read_bytes() == (big / "golden.npz").read_bytes()
    assert [text for text in said if "of which 0.0 MB are there" in text]


def test_a_file_that_changes_while_it_is_copied_is_refused(
    server: SshServer, big: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def say(text: str) -> None:
        if text.startswith("copying golden.npz"):
            (big / "golden.npz").write_bytes(os.urandom(1 << 20))

    device = SshDevice(server.url, say)
    try:
        with pytest.raises(EmoExportError, match="did the file change meanwhile"):
            device.place(big, targets_of(big))
    finally:
        device.close()
    assert not list(server.cache.glob("packages/*/golden*"))


def test_a_name_of_any_kind_will_do(folder: Path, device: SshDevice, tmp_path: Path) -> None:
    for name in (
        "-rf",
        os.fsdecode(b"caf\xe9"),
        "\N{CJK UNIFIED IDEOGRAPH-4E2D} x",
        "." + "n" * 250,
    ):
        copied = tmp_path / name
        copied.mkdir(parents=True)
        for file in ("manifest.json", "golden.npz"):
            shutil.copy(folder / file, copied)
        place = Path(device.place(copied, {}))
        assert (place / "golden.npz").is_file() and place.name[0] not in "-."


def test_two_at_once_send_a_package_once(server: SshServer, big: Path) -> None:
    heard: list[str] = []
    devices = [SshDevice(server.url, heard.append) for _ in range(2)]
    with ThreadPoolExecutor() as pool:
        places = set(pool.map(lambda device: device.place(big, targets_of(big)), devices))
    for device in devices:
        device.close()
    assert len(places) == 1 and len([t for t in heard if t.startswith("copying golden.npz")]) == 1


def test_a_disk_that_is_too_small_is_refused_with_the_numbers(
    server: SshServer, folder: Path, device: SshDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("emo_export.runtimes.devices.transfer.SPARE", 10**18)
    with pytest.raises(EmoExportError, match=r"needs 10{10}\d{2}\.\d MB .* has \d+\.\d MB free"):
        device.place(folder, targets_of(folder))
    assert not list(server.cache.glob("packages/*/*.npz*"))


def test_a_disk_that_fills_up_is_told(
    server: SshServer, big: Path, device: SshDevice, programs: Path
) -> None:
    script = f'ulimit -f 20000; exec "{sys.executable}" "$@"'  # blocks of 512 bytes
    put_program(programs, "python3", script)
    with pytest.raises(EmoExportError, match="free some space there and start again") as refused:
        device.place(big, targets_of(big))
    assert "golden.npz" in str(refused.value)
    device.close()
    assert not (server.cache / "runs").exists()
