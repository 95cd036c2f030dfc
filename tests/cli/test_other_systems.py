"""The light part where Linux's own things are missing, as far as Linux can tell.

What Python lacks on Windows and macOS is taken away before anything of ours is imported. The
engines' own wheels for those systems can't run here.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kit.packages import quantised_package

# After the libraries, whose wheels are for the system that they are on.
AWAY = """
import json, os, signal, sys
import subprocess, tempfile, urllib.request
import click, numpy, onnxruntime, rich.console, rich.progress, rich.table
SYSTEM, COMMANDS = sys.argv[1], json.loads(sys.argv[2])
LACKS = {
    "darwin": (
        [],
        ["sched_getaffinity", "posix_fadvise", "memfd_create", "posix_fallocate"],
        ["sigwaitinfo", "sigtimedwait"],
    ),
    "win32": (
        ["fcntl", "resource", "pwd", "grp", "termios", "tty"],
        "fork geteuid getuid sched_getaffinity posix_fadvise posix_fallocate pread pwrite fchmod "
        "memfd_create O_NOFOLLOW O_CLOEXEC O_DIRECTORY O_NONBLOCK mkfifo".split(),
        "SIGHUP SIGKILL SIGCHLD pthread_sigmask sigwaitinfo sigtimedwait SIG_BLOCK".split(),
    ),
}
modules, of_os, of_signal = LACKS[SYSTEM]
for name in modules:
    sys.modules[name] = None
for module, names in ((os, of_os), (signal, of_signal)):
    for name in names:
        if hasattr(module, name):
            delattr(module, name)
sys.platform = SYSTEM

def without_proc(event, arguments):
    if event == "open" and str(arguments[0]).startswith(("/proc/", "/sys/")):
        raise FileNotFoundError(2, "No such file or directory", str(arguments[0]))

sys.addaudithook(without_proc)
from emo_export.cli.program import program
for command in COMMANDS:
    sys.argv[1:] = command
    try:
        program()
    except SystemExit as end:
        if end.code != (2 if SYSTEM == "win32" and command[0] == "validate" else 0):
            raise SystemExit(f"{command}: exit {end.code}")
"""


@pytest.mark.slow
@pytest.mark.parametrize("system", ["darwin", "win32"])
def test_what_a_laptop_does_with_a_package(system: str, tmp_path: Path) -> None:
    package = str(quantised_package())
    runs = [["run", package, "def main(", "-n", "3", "--target", "onnx:int4"]]
    runs += [["run", package, "def main(", "-n", "3", "--target", "gguf:q4_0", "--json"]]
    looks = [["--version"], ["--help"], ["inspect", package], ["verify", package], ["doctor"]]
    commands = json.dumps([*looks, *runs, ["validate", package]])
    done = subprocess.run(
        [sys.executable, "-c", AWAY, system, commands],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert ("use it in WSL" in done.stderr) == (system == "win32")
    assert "tokens read" in done.stderr and '"reason": "length"' in done.stdout
