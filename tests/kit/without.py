"""The command line where some packages are not installed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

# Stands before site-packages and makes the named packages unfindable, as if never installed.
BLOCKER = """
import os, sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in os.environ["BLOCKED"].split(","):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocker())
import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: (
    None if name.split(".")[0] in os.environ["BLOCKED"].split(",") else find(name, package)
)
"""


def without(
    blocked: str, tmp_path: Path, *arguments: object, code: str = ""
) -> subprocess.CompletedProcess[str]:
    """The command line, or `code`, where the packages of a comma-separated list are missing."""
    (tmp_path / "sitecustomize.py").write_text(BLOCKER)
    env = os.environ | {"PYTHONPATH": str(tmp_path), "BLOCKED": blocked}
    start = ["-c", code] if code else ["-m", "emo_export.cli.main"]
    command = [sys.executable, *start, *map(str, arguments)]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)
