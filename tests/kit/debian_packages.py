"""Debian packages, fetched and unpacked by an ordinary user without being installed.

They come with an apt state of their own from the mirror that this machine's apt uses, checked
against Debian's keys. EMO_EXPORT_DEBIAN_MIRROR names another mirror (on a system whose apt knows
none of Debian).
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from emo_export.runtimes.devices.emulated.debian import MIRROR, mirrors, private_apt

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")


class ToolsError(RuntimeError):
    """A tool can't be set up here, or one of them failed."""


def missing_programs() -> list[str]:
    """What this module needs and this machine lacks."""
    return [name for name in ("apt-get", "dpkg-deb") if shutil.which(name) is None]


def download(state: Path, suite: str, wanted: Sequence[str]) -> list[Path]:
    """The packages and all that they depend on, from the first mirror that has them."""
    apt = private_apt(state, ["amd64"])
    options = f"arch=amd64 signed-by={KEYRING}" if KEYRING.is_file() else "arch=amd64"
    failures = []
    for mirror in mirrors(state):
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
