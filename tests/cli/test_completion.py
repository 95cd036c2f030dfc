"""What real shells complete, on a terminal of their own, and what that imports."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.kit.packages import package
from tests.kit.paths import NANO

HEAVY = {"rich", "numpy", "torch", "onnx", "xllamacpp", "onnxruntime", "tokenizers"}
START = {
    "bash": 'eval "$(_EMO_EXPORT_COMPLETE=bash_source emo-export)"',
    "zsh": "autoload -Uz compinit; compinit -u; "
    'eval "$(_EMO_EXPORT_COMPLETE=zsh_source emo-export)"',
    "fish": "_EMO_EXPORT_COMPLETE=fish_source emo-export | source",
}
"""As docs/terminal.md has it."""
SHELLS = {
    "bash": ["bash", "--norc", "--noprofile", "-i"],
    "zsh": ["zsh", "-f", "-i"],
    "fish": ["fish", "--no-config", "-i"],
}
"""Without what the user of this machine has made of them."""


def asked(line: str) -> list[str]:
    """What bash is told, as lines."""
    code = "import sys\nfrom emo_export.cli.main import main\nsys.argv[1:] = []\n"
    code += "try:\n    main()\nfinally:\n    print(*sys.modules, file=sys.stderr)\n"
    told = {"_EMO_EXPORT_COMPLETE": "bash_complete", "COMP_LINE": line, "COMP_WORDBREAKS": ":=@"}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **told}, capture_output=True, text=True
    )
    assert done.returncode == 0 and HEAVY.isdisjoint(done.stderr.split()), done.stderr[-500:]
    return done.stdout.split()


@pytest.mark.slow
def test_what_is_offered_where_and_nothing_heavy_is_imported() -> None:
    folder = package(NANO, ("gguf:q8_0", "onnx:int4"))
    for line, offered in (
        ("emo-export va", ["validate"]),
        ("emo-export export x --overw", ["--overwrite"]),
        ("emo-export export x --to gguf:q5_k", ["q5_k_m", "q5_k_s"]),
        ("emo-export export x --to=onnx:int8@", ["@if", "@standard"]),
        ("emo-export plan x --fit pi5-1", ["pi5-16gb"]),
        ("emo-export validate x --device p", ["pi4", "pi5", "phone"]),
        (f"emo-export validate {folder} --target ", ["gguf:q8_0", "onnx:int4"]),
        (f"emo-export bench {folder} --target gguf:", ["q8_0"]),
        ("emo-export validate nowhere --target gguf:q5_k_m", ["q5_k_m"]),
    ):
        assert asked(line) == [f"plain,{each}" for each in offered], line
    assert asked("emo-export export exam") == ["dir,exam"]


@contextmanager
def terminal(shell: str, folder: Path) -> Iterator[list[str]]:
    """The start of a tmux command to a shell in a terminal of 80 columns, in a folder."""
    for name, what in (("tmux", "tmux"), (shell, shell)):
        if shutil.which(name) is None:
            pytest.skip(f"{name} is not installed: apt-get install {what}")
    tmux = ["tmux", "-S", str(folder / "socket"), "-f", os.devnull]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    started = [*tmux, "new-session", "-d", "-x", "80", "-y", "40", "-c", str(folder)]
    env = {**os.environ, "PATH": path, "TERM": "xterm", "HOME": str(folder)}
    subprocess.run([*started, *SHELLS[shell]], env=env, check=True)
    try:
        yield tmux
    finally:
        subprocess.run([*tmux, "kill-server"], check=False)


def screen_with(tmux: list[str], wanted: str) -> str:
    """What is shown, once it has a text; after 20 seconds what there is."""
    for _ in range(100):
        done = subprocess.run([*tmux, "capture-pane", "-p"], capture_output=True, text=True)
        if re.search(wanted, done.stdout, re.MULTILINE):
            break
        time.sleep(0.2)
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("shell", sorted(SHELLS))
def test_a_shell_completes(shell: str, tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    with terminal(shell, tmp_path) as tmux:

        def typed(keys: str, wanted: str) -> None:
            subprocess.run([*tmux, "send-keys", "-l", keys], check=True)
            found = screen_with(tmux, wanted)
            assert re.search(wanted, found, re.MULTILINE), found
            subprocess.run([*tmux, "send-keys", "C-c"], check=True)

        subprocess.run([*tmux, "send-keys", "-l", START[shell] + "; echo rea''dy\n"], check=True)
        assert re.search("^ready", screen_with(tmux, "^ready"), re.MULTILINE)
        typed("emo-export valid\t", r"emo-export validate$")
        typed("emo-export export x --to gguf:q6\t", r"--to gguf:q6_k$")
        typed("emo-export export x --to onnx:int8@s\t", r"--to onnx:int8@standard")
        typed("emo-export validate x --device ph\t", r"--device phone")
        typed("emo-export plan check\t", r"emo-export plan checkpoints")
        typed("emo-export validate x --device pi\t\t", r"\bpi4\b(.|\n)*\bpi5\b")
