"""Runs over ssh that end badly: lost connections, interrupts, signals. Nothing goes on there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from emo_export.errors import EmoExportError
from emo_export.runtimes.devices.ssh.address import parse_address
from emo_export.runtimes.devices.ssh.link import SshLink
from emo_export.runtimes.devices.ssh.probe import choose_python
from emo_export.runtimes.devices.ssh.remote import SshDevice, clean_remote
from tests.kit.processes import wait_for
from tests.kit.ssh_server import SshServer
from tests.runtimes.devices.ssh.far import SLEEP, put_program, sleeping, targets_of

pytestmark = pytest.mark.slow


def test_a_connection_lost_in_a_run_is_no_result_and_leaves_nothing(
    server: SshServer, folder: Path, device: SshDevice, programs: Path
) -> None:
    place = device.place(folder, targets_of(folder))
    put_program(programs, "python3", f"{SLEEP}\nexit 1")

    def cut_it() -> None:
        wait_for(lambda: bool(sleeping()))
        server.cut()

    cutter = threading.Thread(target=cut_it)
    cutter.start()
    with pytest.raises(EmoExportError, match="connection was lost"):
        device.run([place, "gguf:f32"])
    cutter.join()
    wait_for(lambda: not sleeping() and not list(server.cache.glob("runs/*")))


def test_an_interrupt_ends_what_runs_there(server: SshServer, folder: Path, programs: Path) -> None:
    put_program(programs, "python3", f'{SLEEP}\nexec "{sys.executable}" "$@"')
    code = (
        "import sys\nfrom pathlib import Path\nfrom emo_export.files.manifest import Manifest\n"
        "from emo_export.runtimes.devices.ssh.remote import SshDevice\n"
        "device = SshDevice(sys.argv[1], print)\nfolder = Path(sys.argv[2])\n"
        "try:\n    place = device.place(folder, Manifest.load(folder).targets)\n"
        "    device.run([place, 'gguf:f32'])\nfinally:\n    device.close()\n"
    )
    command = [sys.executable, "-c", code, server.url, str(folder)]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True
    )
    try:
        wait_for(lambda: bool(sleeping()))
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to ssh as well
        assert b"KeyboardInterrupt" in process.communicate(timeout=30)[1]
    finally:
        process.kill()
    wait_for(lambda: not sleeping() and not list(server.cache.glob("runs/*")))
    assert not (server.cache / "runs").exists()


def test_cleaning_waits_for_no_run_and_breaks_none(
    server: SshServer, folder: Path, device: SshDevice
) -> None:
    place = Path(device.place(folder, targets_of(folder)))
    with pytest.raises(EmoExportError, match="another emo-export is at work there"):
        clean_remote(server.url)
    assert (place / "golden.npz").is_file()
    device.close()
    assert clean_remote(server.url)[0] == [str(server.cache / "packages")]


def test_a_connection_lost_before_our_part_runs_leaves_nothing(server: SshServer) -> None:
    link = SshLink(parse_address(server.url))
    python = choose_python(link.name, link.probe)
    link._send(f"{python.path}\n1000000\nhalf a zip".encode())
    link.close()
    assert not server.left_behind()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGILL])
def test_a_signal_that_ends_a_run_comes_home(
    folder: Path, device: SshDevice, programs: Path, number: signal.Signals
) -> None:
    place = device.place(folder, targets_of(folder))
    put_program(programs, "python3", f"kill -{int(number)} $$")
    assert device.run([place, "gguf:f32"]).code == -number
    put_program(programs, "python3", f"sh -c 'kill -{int(number)} $$'; exit $?")
    assert device.run([place, "gguf:f32"]).code == -number
