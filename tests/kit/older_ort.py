"""An older onnxruntime from PyPI in a folder of its own, shadowing the installed one.

It is fetched once into ~/.cache/emo-export-tests/ (20 MB); its other needs are already installed.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path


def environment(version: str) -> dict[str, str]:
    """Environment variables with which `import onnxruntime` finds this version."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "emo-export-tests"
    place = base / f"onnxruntime-{version}-py{sys.version_info.major}.{sys.version_info.minor}"
    if not place.is_dir():
        base.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=base) as unfinished:
            package = f"onnxruntime=={version}"
            options = ["--quiet", "--no-deps", "--only-binary", ":all:", "--target", unfinished]
            command = [sys.executable, "-m", "pip", "install", *options, package]
            subprocess.run(command, check=True, timeout=300)
            Path(unfinished).rename(place)
            Path(unfinished).mkdir()  # for the context manager to remove
    paths = [str(place), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
