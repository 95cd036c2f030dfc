"""What a far machine's shell tells, and which machines are refused before anything is copied."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from emo_export.errors import EmoExportError, MissingDependencyError
from emo_export.runtimes.devices.ssh.probe import (
    MARK,
    Probe,
    choose_python,
    probe_command,
    read_probe,
)
from emo_export.runtimes.devices.ssh.remote import profile_for

PI = ["system Linux", "machine aarch64", "bits 64", "python /usr/bin/python3 3 11 2 64", "end"]


def probe(*changed: str) -> Probe:
    """A Raspberry Pi's, with other lines for some keys; one without a value takes the line away."""
    keys = {line.split()[0] for line in changed}
    lines = [line for line in PI if line.split()[0] not in keys]
    return read_probe([*(line for line in changed if " " in line), *lines])


@pytest.mark.slow
@pytest.mark.parametrize("shell", [["sh"], ["bash"]])
def test_this_machine_tells_of_itself(shell: list[str]) -> None:
    command = [*shell, "-c", probe_command()]
    done = subprocess.run(command, input="", capture_output=True, text=True, check=True)
    lines = [line.removeprefix(MARK) for line in done.stdout.splitlines()]
    found = read_probe(lines)
    assert lines[-1] == "end" and all(line.startswith(MARK) for line in done.stdout.splitlines())
    assert (found.system, found.machine) == (platform.system(), platform.machine())
    assert found.bits == 64 and found.pythons
    assert any(len(python.version) == 3 for python in found.pythons)
    if sys.prefix == sys.base_prefix:
        assert any(python.version == sys.version_info[:3] for python in found.pythons)


def test_the_first_python_that_is_new_enough_is_taken() -> None:
    old, new = "python /usr/bin/python3 3 9 2 64", "python /opt/my py/python3.12 3 12 0 64"
    assert choose_python("ssh://pi", probe()).path == "/usr/bin/python3"
    assert choose_python("ssh://pi", probe(old, new)).path == "/opt/my py/python3.12"


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (["system Darwin"], "runs Darwin, expected Linux"),
        (["machine armv7l"], r"of type armv7l; .* 64-bit Raspberry Pi OS"),
        (["machine riscv64"], r"of type riscv64; the engines have builds for x86_64 and aarch64"),
        (["bits 32"], r"64-bit kernel \(aarch64\) but 32-bit programs"),
        (["bits", "python /usr/bin/python3 3 11 2 32"], "but 32-bit programs"),
    ],
)
def test_a_machine_without_engines_is_refused(changed: list[str], said: str) -> None:
    with pytest.raises(EmoExportError, match=said):
        choose_python("ssh://pi", probe(*changed))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ("python", "has no python3 on the PATH of an ssh session; install Python 3.11"),
        ("python /usr/bin/python3 3 9 2 64", r"only /usr/bin/python3 \(3\.9\.2\); install Python"),
        ("python /usr/bin/python3 ", r"has only /usr/bin/python3 \(does not start\); install"),
    ],
)
def test_an_old_python_is_a_missing_dependency(changed: str, said: str) -> None:
    with pytest.raises(MissingDependencyError, match=said):
        choose_python("ssh://pi", probe(changed))


@pytest.mark.parametrize(
    ("features", "profile"),
    [
        (["fp", "asimd", "aes", "crc32"], "pi4"),
        (["asimd", "atomics", "asimddp"], "pi5"),
        (["asimddp", "sve", "sve2", "i8mm", "bf16"], "phone"),
        (["asimddp", "sve", "i8mm", "bf16"], "server-arm"),
        (["asimddp", "i8mm"], "phone"),
    ],
)
def test_limits_are_those_of_the_profile_with_the_same_kernels(
    features: list[str], profile: str
) -> None:
    assert profile_for("aarch64", features) == profile
    assert profile_for("x86_64", features) == ""
