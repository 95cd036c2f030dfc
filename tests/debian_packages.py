"""Debian packages, fetched and unpacked by an ordinary user without being installed.

They come with an apt state of their own from the mirror that this machine's apt uses, checked
against Debian's keys. EMO_EXPORT_DEBIAN_MIRROR names another mirror (on a system whose apt knows
none of Debian).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
MIRROR = "EMO_EXPORT_DEBIAN_MIRROR"

# Hooks of the machine's own apt must not run: they tidy the machine's caches, not ours.
APT_CONF = """\
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear APT::Architectures;
APT::Architecture "amd64";
APT::Architectures {{ "amd64"; }};
APT::Sandbox::User "root";
Acquire::Languages "none";
Debug::NoLocking "1";
Dir::Cache "{state}/cache";
Dir::State "{state}/state";
Dir::State::lists "{state}/state/lists";
Dir::State::status "{state}/status";
Dir::Etc::sourcelist "{state}/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
"""


class ToolsError(RuntimeError):
    """A tool can't be set up here, or one of them failed."""


def missing_programs() -> list[str]:
    """What this module needs and this machine lacks."""
    return [name for name in ("apt-get", "dpkg-deb") if shutil.which(name) is None]


def download(state: Path, suite: str, wanted: Sequence[str]) -> list[Path]:
    """The packages and all that they depend on, from the first mirror that has them."""
    for folder in ("state/lists/partial", "cache/archives/partial"):
        (state / folder).mkdir(parents=True)
    (state / "status").touch()
    (state / "apt.conf").write_text(APT_CONF.format(state=state), "utf-8")
    apt = ["apt-get", "-c", str(state / "apt.conf")]
    options = f"arch=amd64 signed-by={KEYRING}" if KEYRING.is_file() else "arch=amd64"
    failures = []
    for mirror in _mirrors():
        (state / "sources.list").write_text(f"deb [{options}] {mirror} {suite} main\n", "utf-8")
        update = _apt([*apt, "update"], state)
        command = [*apt, "install", "--download-only", "--no-install-recommends", "-y", *wanted]
        install = _apt(command, state)
        if install.returncode == 0:
            return sorted((state / "cache/archives").glob("*.deb"))
        failures.append(f"{mirror}:\n{tail(update, 4)}\n{tail(install, 4)}")
    raise ToolsError(
        f"no mirror gave Debian {suite}'s {' and '.join(wanted)}. Needed: network access, and a "
        f"Debian mirror in apt's sources or in {MIRROR}; for a signature that can't be checked, a "
        f"newer debian-archive-keyring\n" + "\n".join(failures)
    )


def _mirrors() -> list[str]:
    """The archives that this machine's apt reads, without the suites."""
    if MIRROR in os.environ:
        return [os.environ[MIRROR]]
    listed = subprocess.run(
        ["apt-get", "-o", "Debug::NoLocking=1", "--print-uris", "update"],
        capture_output=True,
        text=True,
        check=False,
    )
    found = re.findall(r"^'([^']+)/dists/", listed.stdout, re.MULTILINE)
    if not found:
        raise ToolsError(
            f"apt names no mirror on this machine ({tail(listed, 2)}); set {MIRROR} to the "
            "address of a Debian mirror"
        )
    return list(dict.fromkeys(found))


def _apt(command: Sequence[str], state: Path) -> subprocess.CompletedProcess[str]:
    """Run apt with its temporary files in our folder: it may not be able to write to /tmp."""
    environment = {**os.environ, "LC_ALL": "C", "TMPDIR": str(state)}
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def unpack(package: Path, root: Path) -> None:
    """Put the files of a package below `root`."""
    command = ["dpkg-deb", "-x", str(package), str(root)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ToolsError(f"{' '.join(command)}: exit {done.returncode}\n{tail(done, 4)}")


def tail(done: subprocess.CompletedProcess[str], lines: int) -> str:
    """The last lines of what a program said."""
    return "\n".join((done.stdout + done.stderr).strip().splitlines()[-lines:])
