from __future__ import annotations

import mmap
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from emo_export.base.page_cache import drop, resident
from emo_export.base.process_memory import Held
from emo_export.errors import EmoExportError
from emo_export.runtimes.devices.memory import cgroup
from emo_export.runtimes.devices.memory.cap import MemoryFound, run_capped
from emo_export.runtimes.devices.memory.cgroup import memory_group
from tests.kit.paths import ROOT
from tests.kit.processes import gone, wait_for

CHILD = ROOT / "tests" / "kit" / "memory_child.py"
ANONYMOUS, FILE = 60_000_000, 40_000_000
# Memory of the interpreter that the base does not have: blocks of malloc, half a look's growth.
CLOSE = 1_500_000


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """On a disk: files of a tmpfs are not file-backed."""
    path = tmp_path_factory.mktemp("model") / "weights"
    path.write_bytes(os.urandom(FILE))
    return path


@pytest.fixture
def can_cap() -> None:
    """A machine without any group that we may make has nothing to test here but that it says so."""
    group, why = memory_group(1 << 30)
    if group is None:
        assert why.startswith("no control group can be made here (")
        pytest.skip(why)
    group.remove()


def child(model: Path, anonymous: int = ANONYMOUS, seconds: float = 0.4) -> list[str]:
    arguments = [str(anonymous), str(model), str(model.stat().st_size), str(seconds)]
    return [sys.executable, "-S", str(CHILD), *arguments]


def groups(pid: int = os.getpid()) -> list[Path]:
    return [
        folder for parent in cgroup._parents() for folder in parent.glob(f"{cgroup.PREFIX}{pid}-*")
    ]


def check_amounts(found: MemoryFound) -> None:
    assert found.base is not None and found.at_peak is not None
    assert abs(found.peak_anonymous - found.base.anonymous - ANONYMOUS) < CLOSE
    assert abs(found.at_peak.model - FILE) < 8192
    assert found.peak_file >= FILE
    assert found.peak <= found.peak_anonymous + found.peak_file
    assert found.emulator_bytes == 0


def test_amounts_without_a_limit(model: Path) -> None:
    done, found = run_capped(child(model), os.environ, None, [model])
    assert (done.code, done.stdout, done.stderr) == (0, "holding\n", "")
    check_amounts(found)
    told = found.as_dict()
    assert (told["limit"], told["enforced"], told["finished"]) == (None, False, True)
    assert told["base_anonymous"] == found.base.anonymous and told["base_model"] == 0
    assert max(sample[1] for sample in told["samples"]) == found.peak_anonymous
    times = [sample[0] for sample in told["samples"]]
    assert times == sorted(times) and len(times) > 3


def test_a_group_that_has_room(model: Path, can_cap: None) -> None:
    model.read_bytes()
    done, found = run_capped(child(model), os.environ, 150_000_000, [model])
    assert done.code == 0 and found.enforced and not found.oom_killed
    assert found.not_dropped == {}
    check_amounts(found)
    assert groups() == []


def test_pages_of_the_model_are_charged(model: Path, can_cap: None) -> None:
    """With room for the anonymous memory and half of the file, the kernel takes pages back."""
    model.read_bytes()
    limit = ANONYMOUS + FILE // 2 + 10_000_000
    done, found = run_capped(child(model), os.environ, limit, [model])
    assert done.code == 0 and not found.oom_killed
    assert found.at_peak is not None and found.at_peak.model < FILE * 0.9
    # Pages of libraries may be charged to another group that had them first.
    assert found.at_peak.anonymous + found.at_peak.model <= limit * 1.02


def test_too_much_is_ended_by_the_kernel(model: Path, can_cap: None) -> None:
    done, found = run_capped(child(model), os.environ, 50_000_000, [model])
    assert done.code == -signal.SIGKILL and "holding" not in done.stdout
    assert found.enforced and found.oom_killed and not found.finished
    assert found.peak_anonymous <= 50_000_000
    assert groups() == []


def test_an_end_of_its_own_is_not_the_kernels(model: Path, can_cap: None) -> None:
    command = [sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"]
    done, found = run_capped(command, os.environ, 50_000_000, [model])
    assert done.code == -signal.SIGKILL and not found.oom_killed


def test_sampled_where_no_group_can_be_made(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroup, "_OWN", model.parent / "no such file")
    done, found = run_capped(child(model), os.environ, 50_000_000, [model])
    assert done.code == 0 and not found.enforced
    assert found.how.startswith("no control group can be made here (none with a memory controller")
    check_amounts(found)


def test_children_count_too(model: Path) -> None:
    script = "import subprocess, sys; subprocess.run(sys.argv[1:], check=True)"
    command = [sys.executable, "-S", "-c", script, *child(model)]
    done, found = run_capped(command, os.environ, None, [model])
    assert done.code == 0
    check_amounts(found)


def test_nothing_is_left_running(model: Path) -> None:
    """A child that outlives the command goes with it."""
    script = (
        "import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', "
        "'import time; time.sleep(60)']).pid)"
    )
    done, _ = run_capped([sys.executable, "-c", script], os.environ, None, [])
    assert gone(int(done.stdout))


def test_interrupted(model: Path, tmp_path: Path) -> None:
    """Ctrl-C ends the child and removes the group."""
    script = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from emo_export.runtimes.devices.memory.cap import run_capped\n"
        "run_capped(sys.argv[2:], os.environ, 150_000_000, [Path(sys.argv[1])])\n"
    )
    mark = tmp_path / "pid"
    inner = f"import os, time; open({str(mark)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    command = [sys.executable, "-c", script, str(model), sys.executable, "-c", inner]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, start_new_session=True)
    wait_for(lambda: mark.exists() and bool(mark.read_text()))
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=20)
    assert b"KeyboardInterrupt" in said
    assert gone(int(mark.read_text()))
    assert groups(process.pid) == []


def test_groups_of_the_dead_are_swept(can_cap: None) -> None:
    process = subprocess.Popen(["true"])
    process.wait()
    parent = next(cgroup._parents())
    left = parent / f"{cgroup.PREFIX}{process.pid}-1"
    left.mkdir()
    group, _ = memory_group(1 << 30)
    assert group is not None and not left.exists()
    group.remove()


def test_a_command_that_is_not_there(model: Path) -> None:
    with pytest.raises(EmoExportError, match=r"no-such-program: cannot be started \(No such file"):
        run_capped(["/no-such-program"], os.environ, None, [])


def test_a_system_without_proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("emo_export.base.process_memory.PROC", tmp_path)
    with pytest.raises(EmoExportError, match="which this system does not have"):
        run_capped(["true"], os.environ, None, [])


def test_dropping(model: Path) -> None:
    model.read_bytes()
    assert resident(model) >= FILE
    assert drop([model]) == {} and resident(model) == 0


def test_mapped_pages_stay_and_are_told(model: Path) -> None:
    with model.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert sum(mapped[at] for at in range(0, FILE, 4096)) >= 0
        stayed = drop([model])
        assert set(stayed) == {model} and stayed[model] >= FILE
    assert drop([model]) == {}


def test_what_is_not_charged_is_said(model: Path, can_cap: None) -> None:
    with model.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert sum(mapped[at] for at in range(0, FILE, 4096)) >= 0
        _, found = run_capped(["true"], os.environ, 50_000_000, [model])
    assert list(found.not_dropped) == [str(model)]
    assert "; 40.0 MB of the model stayed in the page cache" in found.how


def test_dropping_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(EmoExportError, match="cannot be dropped from the page cache"):
        drop([tmp_path / "none"])


def test_samples_are_thinned_out() -> None:
    found = MemoryFound(None)
    for count in range(5000):
        found.take(count / 10, Held(anonymous=count))
    assert len(found.samples) <= 2001 and found.samples[-1][1] == 4999 == found.peak_anonymous
    assert found.samples[0][1] == 0
