"""A machine at the other end of ssh: a real sshd here, as whoever runs the tests."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from emo_export.runtimes.devices.ssh.link import COMMAND
from emo_export.runtimes.devices.ssh.remote import SshDevice
from tests.kit.packages import SMALL_TARGETS, package
from tests.kit.ssh_server import SshServer, ssh_server
from tests.runtimes.devices.ssh.far import SYSTEM, put_program

BIG = 24 << 20


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a session finds on its PATH before the system's: a test may replace it."""
    return tmp_path_factory.mktemp("bin")


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory, programs: Path) -> Iterator[SshServer]:
    folder = tmp_path_factory.mktemp("ssh") / "server"
    with ssh_server(folder, {"PATH": f"{programs}:{SYSTEM}"}) as server:
        yield server


@pytest.fixture
def server(
    shared: SshServer, programs: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[SshServer]:
    """The server with nothing of ours in its home, and this Python as the python3 there."""
    put_program(programs, "python3", f'exec "{sys.executable}" "$@"')
    put_program(programs, "uname", '[ "$1" = -m ] && exec echo x86_64; exec /usr/bin/uname "$@"')
    monkeypatch.setenv(COMMAND, shared.ssh)
    yield shared
    for program in programs.iterdir():
        program.unlink()
    # A session that was closed may still be removing its own folder, under find's feet.
    ends = time.monotonic() + 30
    while subprocess.run(["find", str(shared.home), "-mindepth", "1", "-delete"]).returncode:
        assert time.monotonic() < ends, f"{shared.home} can't be emptied"
        time.sleep(0.05)


@pytest.fixture(scope="session")
def folder(golden: Path) -> Path:
    return package(golden / "base", SMALL_TARGETS)


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def device(server: SshServer, said: list[str]) -> Iterator[SshDevice]:
    found = SshDevice(server.url, said.append)
    yield found
    found.close()


@pytest.fixture
def big(tmp_path: Path, folder: Path) -> Path:
    """A package with a file that takes a moment to send."""
    made = tmp_path / "big"
    subprocess.run(["cp", "-r", str(folder), str(made)], check=True)
    (made / "golden.npz").write_bytes(os.urandom(BIG))
    return made
