"""The command line as one file: with nothing but numpy and the engines, here and on a Pi."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from emo_export.errors import EmoExportError
from emo_export.runtimes.devices.profiles import PROFILES
from emo_export.runtimes.devices.pyz import PURE, fetch_wheels, write_pyz
from tests.kit.command import run_here
from tests.kit.emulated import emulated
from tests.kit.packages import quantised_package
from tests.kit.workspace import workspace

COMPILED = ("numpy", "onnxruntime", "xllamacpp", "flatbuffers", "google", "protobuf", "packaging")
PROMPT = ["def main(", "-n", "6", "--temperature", "0", "--seed", "1"]


@functools.cache
def pyz() -> Path:
    path = workspace() / f"emo-{os.getpid()}.pyz"
    write_pyz(path)
    return path


@pytest.mark.slow
def test_the_same_sources_make_the_same_file(tmp_path: Path) -> None:
    size = write_pyz(tmp_path / "again.pyz")
    assert (tmp_path / "again.pyz").read_bytes() == pyz().read_bytes()
    assert size == pyz().stat().st_size < 2_000_000
    names = zipfile.ZipFile(pyz()).namelist()
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {
        *("__main__.py", "emo_export"),
        *PURE,
    }
    assert not [name for name in names if name.endswith((".pyc", ".so"))]


@pytest.mark.slow
def test_commands_with_numpy_and_the_engines_alone(tmp_path: Path) -> None:
    site = Path(np.__file__).parent.parent
    for name in COMPILED:
        for found in site.glob(f"{name}*"):
            (tmp_path / found.name).symlink_to(found)
    package = str(quantised_package())

    def run(*arguments: str, code: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, "-S", str(pyz()), *arguments],
            capture_output=True,
            text=True,
            env={"PATH": os.environ["PATH"], "PYTHONPATH": str(tmp_path)},
            check=False,
        )
        assert done.returncode == code, done.stderr
        return done.stdout

    for target in ("onnx:int4", "gguf:q4_0"):
        here = run_here("run", package, *PROMPT, "--target", target)
        assert run("run", package, *PROMPT, "--target", target) == here.out
    assert "passed: gguf:q4_0, onnx:int4" in run("validate", package)
    assert "every byte is as it was" in run("verify", package)
    assert "deepseek" in run("inspect", f"{package}/model-Q4_0.gguf")
    assert "validate" in run("--help")
    run("export", package, "-o", "x", "--to", "gguf:q4_0", code=3)  # torch is missing


@pytest.mark.device
def test_run_on_a_pi(tmp_path: Path) -> None:
    """From the wheels that `device pyz` fetches, unpacked as pip would."""
    emulation = emulated()
    python = ".".join(emulation.versions["python"].text.split(".")[:2])
    wheels, site = tmp_path / "wheels", tmp_path / "site"
    for wheel in fetch_wheels(wheels, ["gguf", "onnx"], "aarch64", python):
        zipfile.ZipFile(wheel).extractall(site)
    package = str(quantised_package())
    for target in ("onnx:int4", "gguf:q4_0"):
        arguments = ["run", package, *PROMPT, "--target", target]
        environment = {"PYTHONPATH": str(site)}
        command = emulation.command(PROFILES["pi4"].cpu, environment, str(pyz()), *arguments)
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "6 written" in done.stderr
        assert len(done.stdout) > 1


def test_a_version_that_is_none_is_refused(tmp_path: Path) -> None:
    for python in ("3.10", "3", "3.13.1"):
        with pytest.raises(EmoExportError, match=r"expected 3\.11 or newer"):
            fetch_wheels(tmp_path, ["gguf"], "aarch64", python)


def test_names_are_looked_at_before_anything_is_fetched(tmp_path: Path) -> None:
    done = run_here("device", "pyz", str(tmp_path / "emo.zip"))
    assert done.code == 2 and "ends with .pyz" in done.err
    (tmp_path / "emo.wheels").mkdir()
    done = run_here("device", "pyz", str(tmp_path / "emo.pyz"), "--engine", "ort")
    assert done.code == 2 and "emo.wheels: is there already" in done.err
    (tmp_path / "emo.wheels" / "mine.txt").touch()
    done = run_here("device", "pyz", str(tmp_path / "emo.pyz"), "--engine", "ort", "--overwrite")
    assert done.code == 2 and "no folder of wheels alone" in done.err
    assert not (tmp_path / "emo.pyz").exists()


@pytest.mark.slow
def test_what_is_told(tmp_path: Path) -> None:
    out = tmp_path / "emo.pyz"
    found = json.loads(run_here("device", "pyz", out, "--json").out)
    assert found == {"path": str(out), "bytes": out.stat().st_size, "install": ["numpy"]}
    assert "emo.pyz doctor" in run_here("device", "pyz", out, "--overwrite").out
