"""What mypy sees of emo_export in the code of somebody who installed it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kit.paths import ROOT

CODE = """
import emo_export
from emo_export.converters.split import split_of

with emo_export.load("out") as model:
    reveal_type(model.text("x"))
reveal_type(split_of)
"""


@pytest.mark.slow
@pytest.mark.parametrize("editable", [True, False], ids=["editable", "wheel"])
def test_types_reach_mypy(editable: bool, tmp_path: Path) -> None:
    pytest.importorskip("mypy", reason='mypy is missing: pip install -e ".[lint]"')
    tree, user = tmp_path / "tree", tmp_path / "user"
    user.mkdir()
    (user / "mine.py").write_text(CODE, "utf-8")
    for name in ("emo_export", "converters", "runtimes"):
        leave = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, tree / name, symlinks=True, ignore=leave)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    python = str(tmp_path / "venv" / "bin" / "python")
    run(sys.executable, "-m", "venv", str(tmp_path / "venv"))
    mode = ["-e"] if editable else []
    run(python, "-m", "pip", "install", "-q", "--no-deps", *mode, str(tree))
    arguments = ["--python-executable", python, "--cache-dir", str(tmp_path / "cache")]
    # numpy is not there, which is not what this is about
    found = run(
        sys.executable, "-m", "mypy", *arguments, "--ignore-missing-imports", "mine.py", at=user
    )
    assert 'Revealed type is "typing.Iterator[str]"' in found
    assert "-> emo_export.text.splits.Split" in found


def run(*command: str, at: Path | None = None) -> str:
    done = subprocess.run(command, capture_output=True, text=True, cwd=at, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
