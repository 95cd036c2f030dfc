"""A child process does not outlive its parent, which is killed with no time to end it."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from emo_export.base.tied import tied

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's; run it there")

CHILD = "import time; time.sleep(60)"
PARENTS = {
    "Child of bench": """
from emo_export.base.child_process import Child
child = Child("x", "tests.base.sleeping")
print(child.pid, flush=True)
child.ask({})
""",
    "an engine or an emulator of a device": """
import os, threading
from emo_export.runtimes.devices.memory import cap
begun = cap._watch
def watch(process, watch, group):
    print(process.pid, flush=True)
    begun(process, watch, group)
cap._watch = watch
cap.run_capped(["sleep", "60"], os.environ, None, [])
""",
    "what the far side of ssh runs": """
import os, pathlib, tempfile
from emo_export.runtimes.devices.far import run
started = run.subprocess.Popen
def start(*args, **settings):
    process = started(*args, **settings)
    print(process.pid, flush=True)
    return process
run.subprocess.Popen = start
run.run_child(["sleep", "60"], os.environ, pathlib.Path(tempfile.gettempdir()), lambda: False)
""",
    "ssh": """
import os
os.environ["EMO_EXPORT_SSH"] = "sh -c 'echo $$ >&3; exec sleep 60'"
os.dup2(1, 3, True)
from emo_export.runtimes.devices.ssh import link
link.subprocess.Popen = lambda *args, _start=link.subprocess.Popen, **settings: _start(
    *args, **settings, pass_fds=[3]
)
from emo_export.runtimes.devices.ssh.address import Address
link.SshLink(Address("host", "nobody"))
""",
}


def is_running(pid: int) -> bool:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        return False
    return fields[0] != "Z"  # init may take its time to collect it


def ends(is_over: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 10
    while not is_over() and time.monotonic() < deadline:
        time.sleep(0.01)
    return is_over()


@pytest.mark.parametrize("name", list(PARENTS))
def test_a_killed_parent_takes_its_child_along(name: str, tmp_path: Path) -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENTS[name]], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert is_running(child)
    parent.kill()
    parent.wait()
    assert ends(lambda: not is_running(child))
    parent.stdout.close()


def test_a_child_whose_parent_lives_runs_on() -> None:
    done = subprocess.run(["true"], preexec_fn=tied(), check=False)
    assert done.returncode == 0
