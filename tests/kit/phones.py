"""A phone in a folder, reached through the stand-in of tests/adb."""

from __future__ import annotations

import ast
import io
import os
import sys
import zipfile
from pathlib import Path

import pytest

from tests.kit.paths import ROOT

ADB = ROOT / "tests" / "kit" / "adb"
READY = "R5CX         device usb:1-2 product:a55 model:Pixel_9 device:a55 transport_id:1\n"
PROPERTIES = {"ro.product.model": "Pixel 9", "ro.build.version.release": "16"}
PROPERTIES["ro.soc.model"] = "Tensor G4"
FREE_KB = 10_000_000


class Phone:
    """The folder, and what a test asks of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tmp = folder / "files" / "data" / "local" / "tmp"
        self.tmp.mkdir(parents=True)
        (folder / "bin").mkdir()
        self.tell("listing", READY)
        self.tell("features", "cmd\nstat_v2\nshell_v2\n")
        cases = "\n".join(f"{key}) echo '{value}';;" for key, value in PROPERTIES.items())
        self.program("getprop", f"case $1 in\n{cases}\nesac")
        self.program("uname", "echo aarch64")
        self.free(FREE_KB)

    def tell(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text, "utf-8")

    def program(self, name: str, script: str) -> None:
        path = self.folder / "bin" / name
        path.unlink(missing_ok=True)
        path.write_text(f"#!/bin/sh\n{script}\n", "utf-8")
        path.chmod(0o755)

    def free(self, kilobytes: int) -> None:
        used = 112_000_000 - kilobytes
        head = "Filesystem     1K-blocks     Used Available Use% Mounted on"
        row = f"/dev/block/dm-5 112000000 {used} {kilobytes} 89% /data/user/0"
        self.program("df", f"echo '{head}'; echo '{row}'")

    def calls(self) -> list[list[str]]:
        """The arguments of every adb that ran."""
        log = self.folder / "log"
        return [ast.literal_eval(line) for line in log.read_text("utf-8").splitlines()]

    def pushed(self) -> list[str]:
        """Names of the files that were copied there, without their folders."""
        rows = [call[2:] for call in self.calls()]
        return [Path(row[1]).name for row in rows if row[:1] == ["push"]]

    def left(self) -> list[str]:
        """What is there, by path, at most two folders deep."""
        top = self.tmp / "emo-export"
        return sorted(p.name.partition("-")[0] for p in top.iterdir()) if top.is_dir() else []


def plug_in(folder: Path, patch: pytest.MonkeyPatch) -> Phone:
    """A phone that the command adb of this test sees."""
    folder.mkdir()
    found = Phone(folder)
    # Not through its first line: a python3 that is a script of pyenv's takes half a second.
    (folder / "host").mkdir()
    starter = folder / "host" / "adb"
    starter.write_text(f'#!/bin/sh\nexec "{sys.executable}" -IS "{ADB}/adb" "$@"\n', "utf-8")
    starter.chmod(0o755)
    patch.setenv("ADB_PHONE", str(folder))
    patch.setenv("PATH", f"{starter.parent}{os.pathsep}{os.environ['PATH']}")
    return found


def runtime_with(far_side: str) -> bytes:
    """A zip whose far side is this script: for what adb carries, not for what a model says."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for package in ("", "runtimes/", "runtimes/devices/", "runtimes/devices/far/"):
            archive.writestr(f"emo_export/{package}__init__.py", "")
        archive.writestr("emo_export/runtimes/devices/far/on_device.py", far_side)
    return made.getvalue()
