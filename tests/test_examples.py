"""The examples: each in the index, with a test that runs it."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kit.llama_tools import tools, unavailable
from tests.kit.packages import quantised_package
from tests.kit.paths import NANO, ROOT

EXAMPLES = ROOT / "examples"
LINKS = re.compile(r"\[[^\]]+\]\(([^)]+)\)")


def rows() -> list[list[str]]:
    lines = (EXAMPLES / "README.md").read_text("utf-8").splitlines()
    return [line.strip("| ").split(" | ") for line in lines if line.startswith("| [")]


def test_every_example_is_in_the_index() -> None:
    linked = [name for row in rows() for name in LINKS.findall(row[0])]
    tracked = subprocess.run(
        ["git", "ls-files", "."], cwd=EXAMPLES, capture_output=True, text=True, check=True
    )
    there = {name.partition("/")[0] for name in tracked.stdout.splitlines()} - {"README.md"}
    assert set(linked) == there and len(linked) == len(there)


def test_every_example_names_a_test_that_knows_it() -> None:
    for names, _, tests in rows():
        paths = [ROOT / name for name in re.findall(r"`([^`]+)`", tests)]
        if not paths:
            assert tests.startswith("none: ") or "emo-nano" in names
            continue
        text = "".join(path.read_text("utf-8") for path in paths)
        for name in LINKS.findall(names):
            # README's first command, which .ci/run runs, is quickstart.sh
            known = name in text or (ROOT / ".ci/run") in paths
            assert known or name == "raspberry-pi.md", name
    readme = (ROOT / "README.md").read_text("utf-8")
    assert "<!-- try -->" in readme and "examples/quickstart.sh" in readme


def run(*command: object, **settings: str) -> str:
    """From the root of the repository, as the examples say."""
    done = subprocess.run(
        [*map(str, command)],
        cwd=ROOT,
        env=os.environ | settings,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def emo(tmp_path: Path) -> str:
    """The command of this environment, wherever it is installed."""
    program = tmp_path / "emo-export"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m emo_export "$@"\n', "utf-8")
    program.chmod(0o755)
    return str(program)


@pytest.mark.slow
def test_your_text_sh(emo: str, tmp_path: Path) -> None:
    text, out = NANO / "calibration" / "c.jsonl", tmp_path / "out"
    said = run("sh", EXAMPLES / "your_text.sh", NANO, text, 4, out, EMO_EXPORT=emo)
    assert "gguf:q4_k_m" in said and said.rstrip().splitlines()[-1]
    assert json.loads((out / "manifest.json").read_text("utf-8"))["source"]["kept"]


@pytest.mark.slow
def test_notebook_py(tmp_path: Path) -> None:
    source = (EXAMPLES / "notebook.py").read_text("utf-8")
    assert source.count("\n# %% ") >= 5
    script = tmp_path / "notebook.py"
    script.write_text(source.replace('Path("out/notebook")', f"Path({str(tmp_path)!r})"), "utf-8")
    said = run(sys.executable, script, PYTHONPATH=str(ROOT))
    assert said.count(": pass, KL") == 2 and said.rstrip().endswith("passed: True")


@pytest.mark.slow
@pytest.mark.parametrize("place", ["onnx-int4", "model-Q4_0.gguf"])
def test_generate_py(place: str) -> None:
    package = quantised_package()
    said = run(
        sys.executable, EXAMPLES / "generate.py", package / place, "def main(", PYTHONPATH=str(ROOT)
    )
    assert len(said) > 1


@pytest.mark.slow
@pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))
def test_llama_server_sh(tmp_path: Path) -> None:
    program = tmp_path / "llama-server"
    words = " ".join(f"'{word}'" for word in tools().command("llama-server"))
    program.write_text(f'#!/bin/sh\nexec {words} "$@"\n', "utf-8")
    program.chmod(0o755)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    model = quantised_package() / "model-Q4_0.gguf"
    said = run("sh", EXAMPLES / "llama_server.sh", model, port, LLAMA_SERVER=str(program))
    answer = json.loads(said.splitlines()[-1])
    assert answer["usage"]["completion_tokens"] == 32 and answer["choices"][0]["text"]
