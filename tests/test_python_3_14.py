"""Slow: the light install on Python 3.14, which comes from Debian sid's packages.

It is unpacked into a cache (some 40 MB) and started through its own dynamic loader.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.bench.install import copy_tracked
from tests.kit.debian_packages import download, unpack
from tests.kit.llama_tools import LIBRARIES, LOADER, unavailable
from tests.kit.packages import quantised_package

PYTHON = "3.14"
PACKAGES = (f"python{PYTHON}-minimal", f"libpython{PYTHON}-stdlib", "libstdc++6", "libgomp1")
GLIBC = range(39, 16, -1)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(unavailable() is not None, reason=str(unavailable())),
]


@functools.cache
def root() -> Path:
    """The unpacked packages, set up when they are asked for the first time."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    place = Path(cache) / "emo-export-tests" / f"python-{PYTHON}"
    if not place.is_dir():
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{place.name}-", dir=place.parent) as name:
            for package in download(Path(name) / "apt", "sid", PACKAGES):
                unpack(package, Path(name) / "root")
            (Path(name) / "root").rename(place)
    return place


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """emo-export[llama,ort] as pip chooses it for 3.14."""
    top = tmp_path_factory.mktemp("light")
    copy_tracked(top / "tree")
    pip = [sys.executable, "-m", "pip"]
    run(*pip, "wheel", "-q", "--no-deps", "-w", str(top), str(top / "tree"))
    (wheel,) = top.glob("*.whl")
    tags = [f"--platform=manylinux_2_{minor}_x86_64" for minor in GLIBC]
    tags += ["--platform=manylinux2014_x86_64", f"--python-version={PYTHON}"]
    tags += ["--implementation=cp", "--abi=cp314", "--abi=abi3", "--abi=none"]
    options = ["--only-binary=:all:", "--target", str(top / "site")]
    # what CI's own environment is held to says nothing of another Python's
    run(*pip, "install", "-q", *options, *tags, f"{wheel}[llama,ort]", PIP_CONSTRAINT="")
    return top / "site"


@pytest.mark.parametrize("target", ["gguf:q4_0", "onnx:int4"])
def test_text(site: Path, target: str) -> None:
    libraries = root() / LIBRARIES
    loader = [str(libraries / LOADER), "--library-path", str(libraries)]
    python = [*loader, str(root() / f"usr/bin/python{PYTHON}")]
    settings = {"PYTHONHOME": str(root() / "usr"), "PYTHONPATH": str(site)}
    assert run(*python, "--version", **settings).startswith(f"Python {PYTHON}")
    package = str(quantised_package())
    arguments = ["-m", "emo_export", "run", package, "def main(", "-n", "8", "--target", target]
    assert len(run(*python, *arguments, **settings)) > 1


def run(*command: str, **settings: str) -> str:
    done = subprocess.run(
        command, env=os.environ | settings, capture_output=True, text=True, cwd="/", check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
