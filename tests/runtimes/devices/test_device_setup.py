"""What is refused before anything is fetched, and what is told; no network is used."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

from emo_export.bench.device_list import device_check
from emo_export.bench.doctor import requirements
from emo_export.errors import EmoExportError
from emo_export.files.manifest import digest
from emo_export.runtimes.devices.emulated.pins import FILE, digest_of, read_pins
from emo_export.runtimes.devices.emulated.place import MARK
from emo_export.runtimes.devices.emulated.root import inside, python_of
from emo_export.runtimes.devices.emulated.setup import ready_emulation
from emo_export.runtimes.devices.profiles import PROFILES, profile_named
from tests.kit.command import Emo

X86_HEADER = b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x03\x00\x3e\x00"
ARM64_HEADER = b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x03\x00\xb7\x00"
pytestmark = pytest.mark.usefixtures("devices")


# --- pins and profiles ---------------------------------------------------------------------------


def test_pins_are_whole_and_fit_what_this_package_needs() -> None:
    pins = read_pins()
    assert set(pins.qemu) == {"amd64", "arm64"}
    assert all(arch == package.arch for arch, package in pins.qemu.items())
    assert {package.arch for package in pins.root} == {"arm64"}
    assert pins.python in pins.wheels
    ort = requirements()["ort"]
    for python, wheels in pins.wheels.items():
        assert SpecifierSet(">=3.11").contains(python)
        found = {wheel.name: wheel.version for wheel in wheels}
        assert set(found) == {"numpy", "onnxruntime", "tokenizers"}
        assert all(SpecifierSet(ort[name]).contains(found[name]) for name in ort)
    sizes = [entry.nbytes for entry in (*pins.root, *pins.qemu.values(), pins.llama)]
    assert min(sizes) > 1000 and pins.index_bytes > 1e6


@pytest.mark.parametrize("wrong", ["sha256", "version", "missing", "integrity"])
def test_damaged_pins_are_refused(tmp_path: Path, wrong: str) -> None:
    content = json.loads(FILE.read_text("utf-8"))
    if wrong == "missing":
        del content["debian"]["root"]
    elif wrong == "integrity":
        content["llama"]["integrity"] = "sha1-abc"
    else:
        content["wheels"]["3.13"][0][wrong] = "--index-url=http://evil"
    (tmp_path / "pins.json").write_text(json.dumps(content))
    with pytest.raises(EmoExportError, match=r"pins\.json: not a pins file"):
        read_pins(tmp_path / "pins.json")


def test_names_of_parts_change_with_their_pins() -> None:
    first, *others = read_pins().root
    changed = replace(first, digest="0" * 64)
    assert digest_of([first, *others]) == digest_of([*others, first])
    assert digest_of([first, *others]) != digest_of([changed, *others])


def test_profiles() -> None:
    assert [(name, one.cpu) for name, one in PROFILES.items()] == [
        ("pi4", "cortex-a72"),
        ("pi5", "cortex-a76"),
        ("phone", "cortex-a710"),
        ("server-arm", "neoverse-v1"),
    ]
    with pytest.raises(EmoExportError, match="no device profile pi3; there are pi4, pi5"):
        profile_named("pi3")


# --- what this machine lacks ---------------------------------------------------------------------


def test_without_apt_the_way_with_a_root_is_told(
    emo: Emo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, devices: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    done = emo("device", "setup")
    assert done.code == 3
    assert "no apt-get and no dpkg-deb" in done.err and "--rootfs DIR" in done.err
    assert [path.name for path in devices.iterdir()] == [MARK]


def test_without_pip_and_uv(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, emo: Emo) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("shutil.which", lambda name: None if name == "uv" else f"/bin/{name}")
    done = emo("device", "setup")
    assert done.code == 3 and "-m ensurepip --upgrade" in done.err


def test_a_machine_without_a_pinned_qemu(monkeypatch: pytest.MonkeyPatch, emo: Emo) -> None:
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    done = emo("device", "setup")
    assert done.code == 3 and "this machine is riscv64" in done.err


def test_another_system(monkeypatch: pytest.MonkeyPatch, emo: Emo) -> None:
    monkeypatch.setattr("sys.platform", "darwin")
    done = emo("device", "setup")
    assert done.code == 3 and "this is darwin" in done.err
    assert not device_check().ok


def test_a_mirror_that_is_not_there(emo: Emo, devices: Path) -> None:
    done = emo("device", "setup")
    assert done.code == 2
    assert "no-mirror" in done.err and "debian-archive-keyring" in done.err
    assert [path.name for path in devices.iterdir()] == [MARK]


def test_an_unsigned_mirror_is_refused(emo: Emo, tmp_path: Path, devices: Path) -> None:
    suite = tmp_path / "no-mirror" / "dists" / "trixie"
    index = suite / "main" / "binary-arm64" / "Packages"
    index.parent.mkdir(parents=True)
    index.write_text("Package: libc6\nArchitecture: arm64\nVersion: 9\nFilename: x.deb\n")
    line = f" {digest(index)} {index.stat().st_size} main/binary-arm64/Packages\n"
    (suite / "Release").write_text(f"Suite: trixie\nSHA256:\n{line}")
    done = emo("device", "setup")
    assert done.code == 2 and "is not signed" in done.err
    assert [path.name for path in devices.iterdir()] == [MARK]


@pytest.mark.parametrize("version", ["latest", "1.21.0 --pre", "../1.2", "-r x"])
def test_what_is_no_version_of_onnxruntime(emo: Emo, version: str) -> None:
    done = emo("device", "setup", f"--onnxruntime={version}")
    assert done.code == 2 and "not a version" in done.err


# --- roots that are given ------------------------------------------------------------------------


def root_with(folder: Path, name: str, content: bytes) -> Path:
    (folder / "usr" / "bin").mkdir(parents=True)
    (folder / "usr" / "bin" / name).write_bytes(content)
    return folder


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("python3.13", X86_HEADER, "a program for x86-64; an arm64 root is needed"),
        ("python3.13", b"\x7fELF\x01\x01" + X86_HEADER[6:18] + b"\x28\x00", "for 32-bit ARM"),
        ("python3.13", b"#!/bin/sh\nexec python\n", "is not a program (no ELF header)"),
        ("python3.13", b"", "is not a program (no ELF header)"),
        ("python3.9", ARM64_HEADER, "its newest Python is 3.9; 3.11 or newer is needed"),
        ("perl", ARM64_HEADER, "no usr/bin/python3.N"),
        ("python3.99", ARM64_HEADER, "the root's Python is 3.99; arm64 wheels are pinned for"),
    ],
)
def test_roots_that_will_not_do(
    emo: Emo, tmp_path: Path, name: str, content: bytes, said: str
) -> None:
    done = emo("device", "setup", "--rootfs", root_with(tmp_path / "root", name, content))
    assert done.code == 2 and said in done.err


def test_a_root_that_is_not_there(emo: Emo, tmp_path: Path) -> None:
    done = emo("device", "setup", "--rootfs", tmp_path / "nowhere")
    assert done.code == 2 and "nowhere: there is no such folder" in done.err


def test_links_of_a_root_are_followed_inside_it(tmp_path: Path) -> None:
    root = root_with(tmp_path / "root", "python3.12-real", ARM64_HEADER)
    bin_ = root / "usr" / "bin"
    (bin_ / "python3.12").symlink_to("/usr/bin/python3.12-real")
    (bin_ / "python3.9").symlink_to("python3.12-real")
    found = python_of(root)
    assert (found.path, found.version) == (bin_ / "python3.12-real", "3.12")
    (bin_ / "loop").symlink_to("loop")
    with pytest.raises(EmoExportError, match="loop is not a file"):
        inside(root, bin_ / "loop")


@pytest.mark.parametrize(
    ("says", "code", "said"),
    [
        ("qemu-aarch64 version 7.2.17 (Debian 1:7.2+dfsg-7)", 3, "is version 7.2.17; install qemu"),
        ("qemu-aarch64 version 9.2.0", 3, "is version 9.2.0; install qemu 10 or newer"),
        ("GNU bash, version 5.2", 2, "--version says: GNU bash"),
        (None, 3, "PATH has no qemu-aarch64; install qemu 10 or newer"),
    ],
)
def test_the_qemu_of_path(
    emo: Emo,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    says: str | None,
    code: int,
    said: str,
) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    if says is not None:
        (tools / "qemu-aarch64").write_text(f"#!/bin/sh\necho '{says}'\n")
        (tools / "qemu-aarch64").chmod(0o755)
    monkeypatch.setenv("PATH", str(tools))
    root = root_with(tmp_path / "root", "python3.13", ARM64_HEADER)
    done = emo("device", "setup", "--rootfs", root)
    assert done.code == code and said in done.err


# --- telling -------------------------------------------------------------------------------------


def test_list_and_doctor_of_a_bare_machine(emo: Emo, devices: Path) -> None:
    done = emo("device", "list")
    assert done.code == 0 and "not set up; emo-export device setup" in done.out
    told = json.loads(emo("device", "list", "--json").out)
    assert [profile["name"] for profile in told["profiles"]] == list(PROFILES)
    assert (told["ready"], told["setups"], told["bytes"]) == (False, [], 0)
    check = device_check()
    assert (check.ok, check.found, check.remedy) == (False, "not set up", "emo-export device setup")
    assert not devices.exists()


def test_help_shows_examples(emo: Emo) -> None:
    for command in ("setup", "list", "clean"):
        assert f"emo-export device {command}" in emo("device", command, "--help").out


def test_the_light_part_stays_light() -> None:
    modules = "emo_export.runtimes.devices.emulated.setup, emo_export.bench.device_list"
    code = f"import sys, {modules}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {"torch", "onnx", "onnxruntime", "numpy", "click"}.isdisjoint(done.stdout.split())


@pytest.mark.parametrize(
    "content", ["", '{"qemu": "/a', '{"qemu": 1, "versions": 2}', "[]", '{"versions": {}}']
)
def test_a_damaged_record_says_what_to_do(tmp_path: Path, content: str) -> None:
    ready = tmp_path / "setup-1.json"
    ready.write_text(content)
    with pytest.raises(EmoExportError, match="is damaged; remove it and run"):
        ready_emulation(ready)
