"""What `doctor` finds here, on machines made of text files, and with libraries that are broken."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from emo_export.bench import doctor
from emo_export.bench.doctor import Check, examine, requirements, satisfies

PI4 = """processor\t: 0
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm crc32 cpuid
CPU part\t: 0xd08

processor\t: 1
Features\t: fp asimd evtstrm crc32 cpuid

Revision\t: c03115
Model\t\t: Raspberry Pi 4 Model B Rev 1.5
"""
PI5 = PI4.replace("crc32", "crc32 asimdhp asimddp").replace("Pi 4", "Pi 5")
LAPTOP = """processor\t: 0
model\t\t: 140
model name\t: A Laptop
physical id\t: 0
core id\t\t: 0
flags\t\t: fpu avx avx2 avx_vnni

processor\t: 1
model name\t: A Laptop
physical id\t: 0
core id\t\t: 0
flags\t\t: fpu avx avx2 avx_vnni
"""
MEMORY = (
    "MemTotal:        8000000 kB\nMemFree: 1 kB\nMemAvailable:    6000000 kB\nHugePages_Total: 0\n"
)


def machine(folder: Path, cpuinfo: str, memory: str = MEMORY, limit: str = "max") -> Path:
    (folder / "proc").mkdir(parents=True)
    (folder / "sys" / "fs" / "cgroup").mkdir(parents=True)
    (folder / "proc" / "cpuinfo").write_text(cpuinfo)
    (folder / "proc" / "meminfo").write_text(memory)
    (folder / "sys" / "fs" / "cgroup" / "memory.max").write_text(limit + "\n")
    return folder


@pytest.fixture(autouse=True)
def two_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1}, raising=False)


@pytest.fixture
def no_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip loading onnxruntime, which takes most of a second."""
    good = Check("onnxruntime loads", "1", True, doctor.USES["ort"])
    monkeypatch.setattr(doctor, "_onnxruntime", lambda: good)


def found(checks: list[Check]) -> dict[str, Check]:
    named = {check.name: check for check in checks}
    assert len(named) == len(checks)
    for check in checks:
        assert check.found and check.needed_for
        assert check.ok or check.remedy, check
    return named


def test_this_machine_is_ready_for_everything() -> None:
    checks = found(examine(lambda: "AVX2 = 1 |\n"))
    for name, check in checks.items():
        if name not in ("memory", "simd") and not name.startswith("disk"):
            assert check.ok, check
    assert checks["onnxruntime"].found == importlib.metadata.version("onnxruntime")
    assert "CPUExecutionProvider" in checks["onnxruntime loads"].found
    assert checks["llama.cpp loads"].found == "AVX2 = 1 |"
    assert sum(name.startswith("ready: ") for name in checks) == 5


def test_the_bounds_are_those_of_the_metadata() -> None:
    wanted = requirements()
    assert set(wanted) == {"", "ort", "llama", "convert", "serve"}
    assert wanted["convert"]["xllamacpp"] == wanted["llama"]["xllamacpp"]  # through its own extra
    assert not any(
        name.startswith("emo-export") for libraries in wanted.values() for name in libraries
    )
    for line in importlib.metadata.requires("emo-export") or []:
        theirs = Requirement(line)
        for extra in wanted:
            plain = theirs.marker is None
            meant = plain if extra == "" else not plain and theirs.marker.evaluate({"extra": extra})  # type: ignore[union-attr]
            if meant and not theirs.extras:
                assert SpecifierSet(wanted[extra][theirs.name]) == theirs.specifier


NUMBERS = st.lists(st.integers(0, 3), min_size=1, max_size=3).map(lambda n: ".".join(map(str, n)))
BOUNDS = st.lists(st.tuples(st.sampled_from([">=", "<=", "==", "<"]), NUMBERS), max_size=3)


@given(NUMBERS, st.sampled_from(["", "+cpu"]), BOUNDS)
def test_bounds_are_judged_as_packaging_judges(
    version: str, local: str, bounds: list[tuple[str, str]]
) -> None:
    wanted = ",".join(operator + bound for operator, bound in bounds)
    assert satisfies(version + local, wanted) == SpecifierSet(wanted).contains(version + local)


def test_versions_that_are_not_plain() -> None:
    assert not satisfies("1.32.0rc1", ">=1.31,<1.32")
    assert satisfies("2.13.0+cpu", ">=2.6,<=2.13.0")
    assert not satisfies("unknown", ">=1")
    assert not satisfies("1.0", "~=1.0")  # an operator that we do not use is never satisfied


# --- libraries that are missing or broken ------------------------------------------------------


def test_missing_and_old_libraries(monkeypatch: pytest.MonkeyPatch, no_probe: None) -> None:
    real = importlib.metadata.version

    def version(name: str) -> str:
        if name in ("torch", "huggingface_hub"):
            raise PackageNotFoundError(name)
        return "1.30.0" if name == "onnxruntime" else real(name)

    monkeypatch.setattr("importlib.metadata.version", version)
    checks = found(examine(lambda: "fine"))
    assert checks["torch"].found == "not installed"
    assert checks["torch"].remedy.endswith('[convert]"')
    assert checks["onnxruntime"].found.startswith("1.30.0, needed is ")
    assert checks["ready: run and validate GGUF"].ok
    assert checks["ready: run and validate ONNX"].found == "no: onnxruntime"
    assert checks["ready: export, validate --reference"].found == "no: torch"
    assert not checks[f"ready: {doctor.HUB_USE}"].ok


def test_a_source_tree_that_is_not_installed(
    monkeypatch: pytest.MonkeyPatch, no_probe: None
) -> None:
    def absent(name: str) -> None:
        raise PackageNotFoundError(name)

    for function in ("requires", "metadata", "version"):
        monkeypatch.setattr(f"importlib.metadata.{function}", absent)
    checks = found(examine())
    assert checks["emo-export"].found == "is not installed as a package"
    assert checks["python"].ok


@pytest.mark.parametrize("error", [ImportError("a\nb"), OSError("libgomp"), ValueError("x")])
def test_a_broken_llama_cpp_is_a_finding(no_probe: None, error: Exception) -> None:
    def info() -> str:
        raise error

    check = found(examine(info))["llama.cpp loads"]
    assert not check.ok
    assert check.found == f"no: {' '.join(str(error).split())}"


BROKEN = {
    "import": ("raise ImportError('numpy ABI')", "ImportError: numpy ABI"),
    "library": ("raise OSError('libgomp.so.1: not found')", "libgomp.so.1"),
    "killed": ("import os; os.kill(os.getpid(), 4)", "ended with -4"),  # SIGILL
    "no cpu": ("__version__ = '1'\ndef get_available_providers(): return ['X']", "1 X"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_onnxruntime_is_a_finding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    code, said = BROKEN[name]
    (tmp_path / "onnxruntime.py").write_text(code + "\n")
    monkeypatch.syspath_prepend(tmp_path)
    checks = found(examine())
    assert not checks["onnxruntime loads"].ok
    assert said in checks["onnxruntime loads"].found
    assert not checks["ready: run and validate ONNX"].ok


def test_an_onnxruntime_that_hangs_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(*_: object, **__: object) -> None:
        raise subprocess.TimeoutExpired("python", 1)

    monkeypatch.setattr("subprocess.run", hang)
    assert "could not be tried" in found(examine())["onnxruntime loads"].found


# --- machines ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cpuinfo", "cpu", "simd", "ok"),
    [
        (PI4, "Raspberry Pi 4 Model B Rev 1.5, 2 physical cores", "none that helps", False),
        (PI5, "Raspberry Pi 5 Model B Rev 1.5, 2 physical cores", "asimddp", True),
        (LAPTOP, "A Laptop, 1 physical core", "avx2, avx_vnni", True),
        ("", "physical core", "unknown on this system", True),
    ],
)
def test_processors(
    tmp_path: Path, no_probe: None, cpuinfo: str, cpu: str, simd: str, ok: bool
) -> None:
    checks = found(examine(root=machine(tmp_path / "root", cpuinfo)))
    assert cpu in checks["cpu"].found
    assert (checks["simd"].found, checks["simd"].ok) == (simd, ok)


def test_memory(tmp_path: Path, no_probe: None) -> None:
    def memory(name: str, text: str = MEMORY, limit: str = "max") -> Check:
        return found(examine(root=machine(tmp_path / name, PI5, text, limit)))["memory"]

    assert memory("plain").found == "8.2 GB, 6.1 GB available"
    capped = memory("capped", limit=str(500 << 20))
    assert "limited to 0.5 GB by a cgroup" in capped.found
    assert not capped.ok
    assert memory("none", "").found == "unknown on this system"
    assert not memory("full", MEMORY.replace("6000000", "100")).ok
    assert doctor.available_memory(tmp_path / "plain") == 6_000_000 * 1024
    assert doctor.available_memory(tmp_path / "capped") == 500 << 20
    assert doctor.available_memory(tmp_path / "none") is None


def test_a_system_without_proc(tmp_path: Path, no_probe: None) -> None:
    checks = found(examine(root=tmp_path))
    assert checks["memory"].ok and checks["simd"].ok


def test_disks(monkeypatch: pytest.MonkeyPatch, no_probe: None) -> None:
    def gone(place: object) -> None:
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr("shutil.disk_usage", gone)
    assert found(examine())["disk here"].found == "unknown: No such file or directory"


def test_hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_probe: None) -> None:
    for name in ("HF_HOME", "HF_HUB_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    cache = tmp_path / ".cache" / "huggingface" / "hub"
    assert (
        found(examine())["hub cache"].found
        == f"{cache} (not there yet; the first download makes it)"
    )
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    (tmp_path / "home" / "hub").mkdir(parents=True)
    assert found(examine())["hub cache"].found == str(tmp_path / "home" / "hub")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    assert found(examine())["hub cache"].found == str(tmp_path)


def test_examining_loads_no_library_here() -> None:
    code = "import sys\nfrom emo_export.bench.doctor import examine\nexamine()\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {"torch", "onnx", "onnxruntime", "gguf", "numpy"}.isdisjoint(done.stdout.split())
