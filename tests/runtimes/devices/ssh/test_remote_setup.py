"""`--setup` on the far side: a virtual environment, made once, or a sentence about why not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from emo_export.errors import EmoExportError, MissingDependencyError
from emo_export.runtimes.devices.far import setup as far_setup
from emo_export.runtimes.devices.far.setup import environment_for, find_python, set_up
from emo_export.runtimes.devices.ssh.link import COMMAND
from emo_export.runtimes.devices.ssh.remote import SshDevice, clean_remote
from tests.kit.packages import SMALL_TARGETS, package
from tests.kit.ssh_server import SshServer, ssh_server
from tests.runtimes.devices.ssh.far import put_program, targets_of


class Answers:
    """What commands say, by a word in them; the commands are kept."""

    def __init__(self, **said: tuple[int, str]) -> None:
        self.said, self.commands = said, list[list[str]]()

    def __call__(self, command: Sequence[str]) -> dict[str, Any]:
        self.commands.append(list(command))
        code, words = next((a for word, a in self.said.items() if word in command), (0, ""))
        return {"code": code, "stdout": "", "stderr": words}


# The last lines of Debian's python3-venv and of pip 26, as they were seen.
NO_ENSUREPIP = (
    "The virtual environment was not created successfully because ensurepip is not\navailable.  "
    "On Debian/Ubuntu systems, you need to install the python3-venv\npackage"
)
NO_NETWORK = (
    "WARNING: Retrying (Retry(total=0)) after connection broken by 'NewConnectionError(\"Failed to "
    "establish a new connection: [Errno 101] Network is unreachable\")': /simple/numpy/\n"
    "ERROR: No matching distribution found for numpy<3,>=2.0"
)
NO_WHEEL = "ERROR: No matching distribution found for xllamacpp<2027,>=2026.10"
FULL = "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device"


@pytest.mark.parametrize(
    ("answers", "kind", "said"),
    [
        (Answers(venv=(1, NO_ENSUREPIP)), MissingDependencyError, "sudo apt install python3-venv"),
        (Answers(venv=(1, "Killed")), EmoExportError, "-m venv there fails: Killed"),
        (Answers(pip=(1, NO_NETWORK)), EmoExportError, "reaches no package index"),
        (Answers(pip=(1, NO_WHEEL)), EmoExportError, "no wheel .* for xllamacpp"),
        (Answers(pip=(1, FULL)), EmoExportError, "no space is left there"),
        (Answers(pip=(-9, "")), EmoExportError, "pip there fails: exit -9"),
    ],
)
def test_what_fails_is_told_and_leaves_nothing(
    tmp_path: Path, answers: Answers, kind: type[EmoExportError], said: str
) -> None:
    with pytest.raises(kind, match=said):
        set_up("python3", tmp_path, ["gguf"], answers)
    assert not list(tmp_path.iterdir())


def test_too_little_space_is_told_with_the_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(far_setup, "NEEDED_MB", 10**12)
    with pytest.raises(EmoExportError, match=r"about 10{12} MB, its disk has \d+ MB free"):
        set_up("python3", tmp_path, ["gguf"], Answers())


def test_an_environment_for_more_serves_for_less(tmp_path: Path) -> None:
    def run(command: Sequence[str]) -> dict[str, Any]:
        versions = {name: "1" for name in command[3:]} if "venv-" in command[0] else {}
        return {"code": 0, "stdout": f"hello\n{json.dumps(versions)}\n", "stderr": ""}

    found = find_python("python3", tmp_path, ["gguf"], run)
    assert found["lacking"] == ["numpy", "xllamacpp"]
    both = environment_for(tmp_path, ["onnx", "gguf"])
    both.mkdir()
    found = find_python("python3", tmp_path, ["gguf"], run)
    assert found["python"] == str(both / "bin" / "python") and not found["lacking"]


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SshServer]:
    """A machine whose Python has no packages."""
    base = Path(sys.base_prefix) / "bin" / f"python3.{sys.version_info.minor}"
    put_program(tmp_path / "bin", "python3", f'exec "{base}" -I "$@"')
    path = {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}"}
    with ssh_server(tmp_path / "server", path) as found:
        monkeypatch.setenv(COMMAND, found.ssh)
        yield found


@pytest.mark.slow
def test_setup_makes_an_environment_once(server: SshServer, golden: Path) -> None:
    folder = package(golden / "base", SMALL_TARGETS)
    targets = {"gguf:f32": targets_of(folder)["gguf:f32"]}
    said: list[str] = []
    for setup in (True, False):  # an environment that is there is found without being asked for
        device = SshDevice(server.url, said.append, setup=setup)
        try:
            place = device.place(folder, targets)
            done = device.run([place, "gguf:f32"])
            assert done.code == 0, done.stderr
            assert json.loads(done.stdout)["result"]["passed"]
            version = device.facts()["xllamacpp"]
        finally:
            device.close()
        (environment,) = {path for path in server.cache.iterdir() if path.name != "packages"}
    assert environment.name.startswith("venv-")
    assert list(environment.glob(f"lib/*/site-packages/xllamacpp-{version}.dist-info"))
    clean_remote(server.url)
    assert not server.cache.exists()


def test_pip_without_a_network_says_what_we_know(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real pip; only the environment for it is this Python's own, which saves making one."""
    base = Path(sys.base_prefix) / "bin" / f"python3.{sys.version_info.minor}"
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "")

    def run(command: Sequence[str]) -> dict[str, Any]:
        if "venv" in command:
            put_program(Path(command[-1]) / "bin", "python", f'exec "{base}" "$@"')
            return {"code": 0, "stdout": "", "stderr": ""}
        once = ["1" if before == "--retries" else word for before, word in pairwise(["", *command])]
        done = subprocess.run(once, capture_output=True, text=True, check=False)
        return {"code": done.returncode, "stdout": done.stdout, "stderr": done.stderr}

    with pytest.raises(EmoExportError, match="reaches no package index"):
        set_up("python3", tmp_path, ["gguf", "onnx"], run)
    assert not list(tmp_path.iterdir())
