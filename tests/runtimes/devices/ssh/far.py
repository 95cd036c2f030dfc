"""What the tests of ssh share: programs there, processes there, and waiting for them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

from emo_export.files.manifest import Manifest
from emo_export.files.target_entry import TargetEntry
from tests.kit.ssh_server import SshServer

SECONDS = f"61.{os.getpid()}"  # which tells our own from others
SLEEP = f'case "$*" in *on_device*) exec sleep {SECONDS} ;; esac'
SYSTEM = "/usr/bin:/bin"


def put_program(folder: Path, name: str, script: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{script}\n", "utf-8")
    (folder / name).chmod(0o755)


def targets_of(folder: Path) -> Mapping[str, TargetEntry]:
    return Manifest.load(folder).targets


def running(server: SshServer, what: str) -> list[int]:
    """Processes on this machine whose command line has both the server's home and `what`."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            line = (place / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if str(server.home) in line and what in line:
            found.append(int(place.name))
    return found


def sleeping() -> list[str]:
    found = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True)
    return [line for line in found.stdout.splitlines() if line.strip() == f"sleep {SECONDS}"]
