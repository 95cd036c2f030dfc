"""The command that hints name is that of the installer."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bench.install import copy_tracked
from tests.kit.paths import ROOT

ASK = "from emo_export.base.install import install_command as i; print(i('ort'), i('report'))"


def ask(python: str) -> str:
    done = subprocess.run([python, "-c", ASK], cwd="/", capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_nothing_of_ours_is_installed(tmp_path: Path) -> None:
    (tmp_path / "emo_export").symlink_to(ROOT / "emo_export")
    done = subprocess.run(
        [sys.executable, "-S", "-c", ASK],
        cwd="/",
        env={"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == 'pip install onnxruntime pip install "emo-export[report]"'


@pytest.mark.slow
def test_uv(tmp_path: Path) -> None:
    """The real uv, which PyPI has: a tool of its own, and an environment."""
    copy_tracked(tmp_path / "tree")
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    subprocess.run([tmp_path / "venv/bin/pip", "install", "-q", "uv>=0.9,<1"], check=True)
    uv = str(tmp_path / "venv/bin/uv")
    tools = {"UV_TOOL_DIR": str(tmp_path / "tools"), "UV_TOOL_BIN_DIR": str(tmp_path / "bin")}
    subprocess.run(
        [uv, "tool", "install", "-q", "--python", sys.executable, tmp_path / "tree"],
        env=os.environ | tools,
        check=True,
    )
    place = f'"{tmp_path}/tree'
    assert ask(str(tmp_path / "tools/emo-export/bin/python")) == (
        f'uv tool install {place}[ort]" uv tool install {place}[report]"'
    )
    environment = tmp_path / "other"
    subprocess.run([uv, "venv", "-q", "--python", sys.executable, environment], check=True)
    python = str(environment / "bin/python")
    install = [uv, "pip", "install", "-q", "--no-deps", "--python", python, tmp_path / "tree"]
    subprocess.run(install, check=True)
    assert ask(python) == f'uv pip install {place}[ort]" uv pip install {place}[report]"'
