"""A phone over adb: what goes there, what comes back, what is left behind."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from emo_export.errors import EmoExportError
from emo_export.files.target_entry import TargetEntry
from emo_export.runtimes.devices.adb.android import PYTHON, AdbDevice, clean_adb
from emo_export.runtimes.devices.adb.root import PhoneRoot
from emo_export.spec import Spec
from tests.kit.phones import Phone, plug_in, runtime_with
from tests.kit.processes import gone, wait_for

TARGETS: Mapping[str, Mapping[str, Any]] = {
    "gguf:q4_0": TargetEntry(Spec("gguf", "q4_0"), "model-Q4_0.gguf"),
    "onnx:int4": TargetEntry(Spec("onnx", "int4"), "onnx-int4"),
}
ECHO = "import json, sys; print('noise', file=sys.stderr); print(json.dumps(sys.argv[1:]))"


@pytest.fixture
def phone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Phone:
    monkeypatch.setenv(PYTHON, sys.executable)
    return plug_in(tmp_path / "phone", monkeypatch)


@pytest.fixture
def package(tmp_path: Path) -> Path:
    folder = tmp_path / "it's a package"
    (folder / "onnx-int4").mkdir(parents=True)
    names = ("manifest.json", "golden.npz", "model-Q4_0.gguf", "model-Q8_0.gguf", "README.md")
    for name in (*names, "onnx-int4/model.onnx", "onnx-int4/model.onnx.data"):
        (folder / name).write_bytes(name.encode() * 1000)
    return folder


def no_root() -> PhoneRoot:
    raise AssertionError("Python is on the phone")


def device(far_side: str = ECHO) -> AdbDevice:
    return AdbDevice(None, runtime_with(far_side), no_root, lambda text: None)


@pytest.mark.slow
def test_sends_the_targets_that_were_asked_for_and_only_once(phone: Phone, package: Path) -> None:
    there = device().place(package, TARGETS)
    place = Path(f"{phone.folder}/files{there}")
    names = sorted(p.relative_to(place).as_posix() for p in place.rglob("*") if p.is_file())
    assert names == [
        "golden.npz",
        "manifest.json",
        "model-Q4_0.gguf",
        "onnx-int4/model.onnx",
        "onnx-int4/model.onnx.data",
    ]
    assert all((place / name).read_bytes() == (package / name).read_bytes() for name in names)
    (phone.folder / "log").unlink()
    assert device().place(package, TARGETS) == there
    assert phone.pushed() == ["runtime.zip"]


@pytest.mark.slow
def test_sends_what_changed_here_or_there(phone: Phone, package: Path) -> None:
    there = Path(f"{phone.folder}/files{device().place(package, TARGETS)}")
    (package / "golden.npz").write_bytes(b"another")
    damaged = there / "onnx-int4" / "model.onnx.data"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")  # of the same size
    (there / "model-F32.gguf").write_bytes(b"of an earlier export")
    (there / "golden.npz.part").write_bytes(b"cut off")
    (phone.folder / "log").unlink()
    device().place(package, TARGETS)
    assert phone.pushed() == ["golden.npz", "model.onnx.data", "runtime.zip"]
    assert damaged.read_bytes() == (package / "onnx-int4" / "model.onnx.data").read_bytes()
    assert (there / "golden.npz").read_bytes() == b"another"
    assert {p.name for p in there.iterdir() if p.suffix in (".gguf", ".part")} == {
        "model-Q4_0.gguf"
    }


def test_refuses_before_sending_where_there_is_no_room(phone: Phone, package: Path) -> None:
    phone.free(32 * 1024 + 50)  # kB, of which 32 MiB stay free
    with pytest.raises(EmoExportError, match=r"R5CX: needs 33\.6 MB .* has 33\.6 MB free"):
        device().place(package, TARGETS)
    assert phone.pushed() == []
    phone.program("df", "echo nonsense")
    with pytest.raises(EmoExportError, match="tells no free space"):
        device().place(package, TARGETS)


@pytest.mark.slow
def test_removes_what_a_killed_run_left(phone: Phone, package: Path) -> None:
    old, young = (phone.tmp / "emo-export" / name for name in ("run-old", "run-young"))
    for left in (old, young):
        left.mkdir(parents=True)
        (left / "runtime.zip").touch()
    os.utime(old, (0, 0))
    with_it = device()
    with_it.place(package, TARGETS)
    with_it.close()
    assert not old.exists() and young.exists()


def test_refuses_a_file_that_arrived_damaged(phone: Phone, package: Path) -> None:
    phone.program("sha256sum", "echo 0000  $*")
    with pytest.raises(EmoExportError, match=r"golden\.npz: the copy on adb:R5CX differs"):
        device().place(package, TARGETS)
    assert not list(phone.tmp.rglob("golden.npz*"))


def test_names_a_file_that_is_missing_here(phone: Phone, package: Path) -> None:
    (package / "golden.npz").unlink()
    with pytest.raises(EmoExportError, match=r"golden\.npz is missing"):
        device().place(package, TARGETS)


def test_refuses_a_phone_of_another_kind(phone: Phone) -> None:
    phone.program("uname", "echo armv7l")
    with pytest.raises(EmoExportError, match="R5CX runs armv7l code"):
        device()


@pytest.mark.slow
def test_refuses_a_python_that_is_too_old_or_does_not_start(
    phone: Phone, package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    phone.program("oldpython", "echo '[[3, 9, 1], \"1.26\"]'")
    monkeypatch.setenv(PYTHON, "oldpython")
    with pytest.raises(EmoExportError, match=r"Python 3\.9\.1 is too old, it takes 3\.11"):
        device().place(package, TARGETS)
    monkeypatch.setenv(PYTHON, "run-as com.termux python3")
    with pytest.raises(EmoExportError, match=r"does not start there \(code 127\).*run-as"):
        device().place(package, TARGETS)


@pytest.mark.slow
def test_runs_the_far_side_and_leaves_only_the_package(phone: Phone, package: Path) -> None:
    with_it = device()
    there = with_it.place(package, TARGETS)
    words = [there, "gguf:q4_0", "it's $HOME", '"; exit 9 #', ""]
    done = with_it.run(words)
    assert done.code == 0
    assert json.loads(done.stdout) == words
    assert done.stderr == "noise\n"
    facts = with_it.facts()
    assert facts["phone"] == "Pixel 9" and facts["android"] == "16"
    again = subprocess.run(shlex.split(with_it.command(words)), capture_output=True, check=True)
    assert json.loads(again.stdout) == words
    assert phone.left() == ["package", "run"]
    with_it.close()
    assert phone.left() == ["package"]
    with_it.close()
    removed, nbytes = clean_adb("adb:R5CX")
    assert removed == ["/data/local/tmp/emo-export"] and nbytes > 70_000
    assert phone.left() == []
    assert clean_adb("adb") == ([], 0)


@pytest.mark.slow
def test_tells_which_signal_ended_the_far_side(phone: Phone, package: Path) -> None:
    crash = "import os, signal; os.kill(os.getpid(), signal.SIGILL)"
    with_it = device(crash)
    with_it.place(package, TARGETS)
    assert with_it.run([]).code == -signal.SIGILL


def far_process(phone: Phone) -> int:
    """Waits for the number of the process that the phone runs."""

    def told() -> list[str]:
        return [p.read_text().strip() for p in phone.tmp.glob("emo-export/run-*/pid")]

    wait_for(lambda: any(told()))
    return int(max(told()))


@pytest.mark.slow
def test_ends_the_far_side_when_interrupted(phone: Phone, package: Path) -> None:
    with_it = device("import time; time.sleep(60)")
    with_it.place(package, TARGETS)
    seen: list[int] = []
    # A command that ran in this process has a handler of its own, which ignores all later ones.
    signal.signal(signal.SIGINT, signal.default_int_handler)

    def interrupt() -> None:
        seen.append(far_process(phone))
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        with_it.run([])
    thread.join()
    with_it.close()
    assert gone(seen[0])
    assert phone.left() == ["package"]


@pytest.mark.slow
def test_ends_the_far_side_when_the_phone_comes_back(phone: Phone, package: Path) -> None:
    with_it = device("import time; time.sleep(60)")
    with_it.place(package, TARGETS)
    phone.tell("lost", "on_device")
    with pytest.raises(EmoExportError, match="connection to the phone R5CX ended"):
        with_it.run([])
    (phone.folder / "lost").unlink()
    with_it.close()
    assert phone.left() == ["package"]


def test_packs_a_root_that_starts_anywhere(tmp_path: Path) -> None:
    source = tmp_path / "source"
    library = source / "usr" / "lib" / "aarch64-linux-gnu"
    library.mkdir(parents=True)
    (source / "lib").symlink_to("usr/lib")
    loader = library / "ld-linux-aarch64.so.1"
    loader.write_bytes(b"loader")
    loader.chmod(0o755)
    site = tmp_path / "site"
    site.mkdir()
    (site / "numpy.py").write_text("1")
    os.link(site / "numpy.py", site / "twin.py")
    root = PhoneRoot(
        {"root": source, "site": site}, "usr/bin/python3.11", ["site"], {"A": "{site}/b"}
    )
    root.pack(tmp_path / "a.tar")
    shutil.copytree(tmp_path / "source", tmp_path / "again", symlinks=True)
    twin = PhoneRoot({"root": tmp_path / "again", "site": site}, root.python, ["site"], {})
    twin.pack(tmp_path / "b.tar")
    assert twin.name == root.name
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
    with tarfile.open(tmp_path / "a.tar") as archive:
        kinds = {entry.name: (entry.type, oct(entry.mode)) for entry in archive}
    assert kinds == {
        "root/lib": (tarfile.SYMTYPE, "0o755"),
        "root/usr/lib/aarch64-linux-gnu/ld-linux-aarch64.so.1": (tarfile.REGTYPE, "0o755"),
        "site/numpy.py": (tarfile.REGTYPE, "0o644"),
        "site/twin.py": (tarfile.REGTYPE, "0o644"),
    }
    assert root.start("/there")[0] == "/there/root/lib/aarch64-linux-gnu/ld-linux-aarch64.so.1"
    assert root.settings("/there")["A"] == "/there/site/b"
    loader.unlink()
    with pytest.raises(EmoExportError, match="no folder of arm64 Linux"):
        root.start("/there")
    assert PhoneRoot(root.folders, root.python, ["site"], {}).name != root.name


def test_needs_nothing_but_numpy_in_the_far_python() -> None:
    code = (
        "import sys, emo_export.runtimes.devices.adb.android as a; print([m for m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "onnx", "transformers", "click", "onnxruntime"} & set(eval(done.stdout))
