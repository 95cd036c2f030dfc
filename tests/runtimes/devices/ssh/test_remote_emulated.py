"""`--device ssh://…` where the far side is a Raspberry Pi 4, emulated."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from emo_export.runtimes.devices.request import Request, Share
from emo_export.runtimes.devices.ssh.link import COMMAND
from emo_export.runtimes.devices.ssh.remote import SshDevice
from tests.kit.device_runs import judged_on
from tests.kit.emulated import emulated
from tests.kit.packages import SMALL_TARGETS, package
from tests.kit.ssh_server import ssh_server
from tests.runtimes.devices.ssh.far import SYSTEM, put_program, targets_of

pytestmark = pytest.mark.device


def test_an_emulated_pi_4_is_judged_over_ssh(
    tmp_path: Path, golden: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = emulated()
    line = shlex.join(made.command("cortex-a72", {}))
    packages = f"PYTHONPATH={made.site}"
    assert packages in line
    line = line.replace(packages, f'PYTHONPATH="$PYTHONPATH:{made.site}"')
    put_program(tmp_path / "bin", "python3", f'exec {line} "$@"')
    machine = '[ "$1" = -m ] && exec echo aarch64; exec /usr/bin/uname "$@"'
    put_program(tmp_path / "bin", "uname", machine)
    folder = package(golden / "base", SMALL_TARGETS)
    targets = targets_of(folder)
    said: list[str] = []
    environment = {
        "PATH": f"{tmp_path}/bin:{SYSTEM}",
        "EMO_EXPORT_LIBLLAMA": str(made.libllama),
    }
    with ssh_server(tmp_path / "server", environment) as server:
        monkeypatch.setenv(COMMAND, server.ssh)
        device = SshDevice(server.url, said.append)
        try:
            request = Request(
                share=Share(sequences=1, positions=8, heldout_tokens=32, greedy_steps=2)
            )
            reports = judged_on(device, folder, targets, request)
        finally:
            device.close()
        assert not (server.cache / "runs").exists()
    assert device.profile == "pi4"
    assert [report.target for report in reports] == list(SMALL_TARGETS)
    for found in reports:
        assert found.passed, found.as_dict()
        assert found.machine["architecture"] == "aarch64"
        features = found.machine["CPU features"].split()
        assert "asimd" in features and "asimddp" not in features
