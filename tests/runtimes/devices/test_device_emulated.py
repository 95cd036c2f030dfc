"""The real setup: fetched once into the tests' cache, run on every profile, also offline."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from emo_export.bench.device_list import listing
from emo_export.runtimes.devices.emulated import debian as device_debian
from emo_export.runtimes.devices.emulated.fetch import Progress
from emo_export.runtimes.devices.emulated.pins import read_pins
from emo_export.runtimes.devices.emulated.place import MARK
from emo_export.runtimes.devices.emulated.setup import emulation
from emo_export.runtimes.devices.profiles import PROFILES
from tests.kit.command import Emo
from tests.kit.emulated import DEVICES, emulated
from tests.kit.packages import DEVICE_TARGETS, package
from tests.kit.paths import NANO

pytestmark = pytest.mark.device

SEEN = """
import ctypes, json, os, sys
from pathlib import Path
import numpy, onnxruntime, tokenizers
library = ctypes.CDLL(sys.argv[1])
library.ggml_backend_load_all_from_path(str(Path(sys.argv[1]).parent).encode())
library.llama_print_system_info.restype = ctypes.c_char_p
print(json.dumps({
    "machine": os.uname().machine,
    "sum": int(numpy.arange(10).sum()),
    "providers": onnxruntime.get_available_providers(),
    "path": sys.path,
    "info": library.llama_print_system_info().decode(),
    "variable": os.environ["WITH_COMMA"],
}))
"""
KERNELS = {  # ggml's kernels, and what only they and better ones have
    "pi4": ("armv8.0_1", None),
    "pi5": ("armv8.2_2", "DOTPROD = 1"),
    "phone": ("armv8.6_2", "SVE_CNT = 16"),
    "server-arm": ("armv8.6_1", "SVE_CNT = 32"),
}


@pytest.mark.parametrize("name", PROFILES)
def test_the_engines_load_and_see_the_cpu(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = emulated()  # which may have to set it up, before the environment is spoilt
    for other in ("PYTHONHOME", "PYTHONPLATLIBDIR", "LD_LIBRARY_PATH"):
        monkeypatch.setenv(other, "/wrong")
    monkeypatch.setenv("QEMU_GDB", "0")  # qemu would wait for a debugger
    (tmp_path / "numpy.py").write_text("raise SystemExit('the folder was searched')")
    extra = {"PYTHONPATH": "/nowhere", "WITH_COMMA": "a,b=c"}
    command = made.command(PROFILES[name].cpu, extra, "-c", SEEN, str(made.libllama))
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout.splitlines()[-1])
    assert (seen["machine"], seen["sum"], seen["variable"]) == ("aarch64", 45, "a,b=c")
    assert "CPUExecutionProvider" in seen["providers"]
    assert seen["path"][:2] == ["/nowhere", str(made.site)]
    loaded = re.findall(
        r"load_backend: loaded CPU backend from .*libggml-cpu-(\S+)\.so", done.stderr
    )
    kernel, feature = KERNELS[name]
    assert loaded == [kernel]
    assert feature is None or feature in seen["info"]
    assert (feature is None) == ("DOTPROD" not in seen["info"])


def test_versions_and_list() -> None:
    versions = emulated().versions
    pins = read_pins()
    wheels = {wheel.name: wheel.version for wheel in pins.wheels[pins.python]}
    assert {name: versions[name].text for name in wheels} == wheels
    assert versions["python"].text.startswith(f"{pins.python}.")
    assert versions["qemu"].text.startswith("10.") and versions["libc"].text.startswith("glibc 2.")
    found = listing()
    assert found.ready and found.folder == DEVICES and found.nbytes > 1e8
    assert any(setup["site"] == str(emulated().site) for setup in found.setups)


def test_later_calls_need_no_network() -> None:
    emulated()
    closed = {name: "http://127.0.0.1:9" for name in ("http_proxy", "https_proxy")}
    command = [sys.executable, "-m", "emo_export.cli.main", "device", "setup", "--json"]
    cut = ["unshare", "-n"] if os.geteuid() == 0 and shutil.which("unshare") else []
    done = subprocess.run(
        [*cut, *command], env=os.environ | closed, capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    assert json.loads(done.stdout)["python"] == str(emulated().python)


def test_three_at_once_from_nothing(tmp_path: Path) -> None:
    """As `env -i` leaves it, with a TMPDIR that is not there: one fetches, two wait."""
    folder = tmp_path / "a folder, with a comma"
    environment = {
        **{"HOME": str(tmp_path), "PATH": os.environ["PATH"], "TMPDIR": "/nowhere"},
        **{"EMO_EXPORT_DEVICES": str(folder), "PYTHONPATH": os.pathsep.join(sys.path)},
    }
    command = [sys.executable, "-m", "emo_export.cli.main", "device", "setup"]
    started = time.monotonic()
    running = [
        subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    said = [process.communicate()[1] for process in running]
    assert [process.returncode for process in running] == [0, 0, 0], said
    assert time.monotonic() - started < 120
    assert sum("another process is at work" in text for text in said) == 2
    assert sum("MB to fetch" in text for text in said) == 1
    kinds = sorted(path.name.partition("-")[0] for path in folder.iterdir() if path.name != MARK)
    assert kinds == ["llama", "qemu", "root", "setup", "site"]


@pytest.mark.parametrize("seconds", [1, 6])
def test_an_interrupted_setup_leaves_whole_parts_alone(tmp_path: Path, seconds: float) -> None:
    environment = os.environ | {"EMO_EXPORT_DEVICES": str(tmp_path / "devices")}
    command = [sys.executable, "-m", "emo_export.cli.main", "device", "setup"]
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as process:
        time.sleep(seconds)
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130
    for path in (tmp_path / "devices").glob("*"):
        assert path.name == MARK or (path / "VERSIONS.json").is_file()


def test_a_package_newer_than_its_pin_is_taken_and_told(tmp_path: Path) -> None:
    """What a point release of Debian does to the pins, with the real mirror."""
    pin = next(package for package in read_pins().root if package.name == "libbz2-1.0")
    older = replace(pin, version="0.1", digest="0" * 64)
    told: list[str] = []
    (fetched,) = device_debian.fetch([older], "trixie", tmp_path, Progress(told.append))
    assert fetched.version.note == "not the pinned 0.1, signed by Debian"
    assert not fetched.version.pinned and told[-1] == f"libbz2-1.0 {fetched.version}"
    forged = replace(fetched.pin, digest="0" * 64)
    (tmp_path / "again").mkdir()
    with pytest.raises(device_debian.EmoExportError, match="pinned is 0000"):
        device_debian.fetch([forged], "trixie", tmp_path / "again", Progress(told.append))


def test_a_root_and_a_qemu_that_are_given(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = emulated()
    monkeypatch.setenv("PATH", str(ours.qemu.parent))
    given = emulation(rootfs=ours.root, on_stage=lambda text: None)
    assert (given.python, given.site) == (ours.python, ours.site)
    assert given.versions["qemu"].note.startswith(f"{ours.qemu}, not the pinned Debian 1:10")
    assert not given.versions["qemu"].pinned and not given.versions["root"].pinned


def test_an_onnxruntime_of_old_ends_on_a_pi4_alone() -> None:
    made = emulated("1.21.0")
    version = made.versions["onnxruntime"]
    assert not version.pinned and str(version).startswith("1.21.0 (asked for, not the pinned 1.")
    ended = [
        subprocess.run(
            made.command(cpu, {}, "-c", "import onnxruntime; print(onnxruntime.__version__)"),
            capture_output=True,
            text=True,
            check=False,
        )
        for cpu in ("cortex-a72", "cortex-a76")
    ]
    assert [done.returncode for done in ended] == [-signal.SIGILL, 0]
    assert ended[1].stdout == "1.21.0\n"


def test_a_crash_is_a_failed_validation_while_memory_is_measured_too(emo: Emo) -> None:
    """exit 1, not 2: a user's run on a Pi 4 would end in the same way."""
    emulated("1.21.0")
    folder = package(NANO, DEVICE_TARGETS)
    asked = ["--device", "pi4", "--onnxruntime", "1.21.0", "--ram", "2GB", "--json"]
    done = emo("validate", folder, "--target", "onnx:int8", *asked)
    assert done.code == 1, done.err
    (report,) = json.loads(done.out)["targets"]
    assert not report["passed"] and report["crash"]["signal"] == signal.SIGILL
