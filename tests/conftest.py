"""Fixtures that several test modules share."""

from __future__ import annotations

import gc
import json
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

# Before torch is imported: with several test processes on two cores, its threads would only wait
# for each other (a pass over emo-nano took 58 s instead of 2).
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A job in a shell's background inherits SIGINT ignored, one under nohup SIGHUP, and so would the
# commands that tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

from emo_export.judging.here import judge
from emo_export.parity.golden import Golden
from emo_export.parity.result import Result
from emo_export.spec import Spec
from tests.kit import time_left
from tests.kit.command import Done, Emo, exit_code_of
from tests.kit.exporting import exported
from tests.kit.packages import SMALL_TARGETS
from tests.kit.packages import package as exported_package
from tests.kit.paths import GOLDEN, NANO
from tests.kit.synth import make_checkpoint
from tests.kit.workspace import SHARED, made_once


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seconds", type=float, help=time_left.HELP)


def pytest_configure(config: pytest.Config) -> None:
    # Images of containers often say so; every process would compile all modules again.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    # What .ci/run installs is held to it; older engines and other machines' wheels are not.
    os.environ.pop("PIP_CONSTRAINT", None)
    sys.dont_write_bytecode = False
    if not hasattr(config, "workerinput"):  # the workers of xdist inherit it
        os.environ[SHARED] = tempfile.mkdtemp(prefix="emo-export-tests-")
        time_left.start(config.getoption("--seconds"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    time_left.shuffle(items)


def pytest_runtest_setup(item: pytest.Item) -> None:
    time_left.check(item.nodeid)


def pytest_unconfigure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        shutil.rmtree(os.environ.pop(SHARED), ignore_errors=True)


def pytest_collection_finish() -> None:
    """What is imported stays: without this, each full collection goes over all of it."""
    gc.freeze()


@pytest.fixture(scope="session")
def golden() -> Path:
    return GOLDEN


@pytest.fixture(scope="session")
def nano() -> Path:
    return NANO


@pytest.fixture
def base_config() -> dict[str, Any]:
    """A fresh copy of the base golden's config.json, free to change."""
    config: dict[str, Any] = json.loads((GOLDEN / "base" / "config.json").read_text("utf-8"))
    return config


@pytest.fixture
def synth(tmp_path: Path) -> Path:
    """A small checkpoint of its own for one test, free to damage."""
    return make_checkpoint(tmp_path / "synth")


@pytest.fixture
def emo(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Emo:
    """The command line here; `validate` too, whose processes tests/judging/ tries."""

    def here(spec: Spec, path: Path, golden: Golden, *options: Any, timeout: float) -> Result:
        return judge(spec, path, golden, *options)

    monkeypatch.setattr("emo_export.cli.validate.judge_apart", here)

    def call(*arguments: object) -> Done:
        capfd.readouterr()
        code = exit_code_of(*arguments)
        captured = capfd.readouterr()
        return Done(code, captured.out, captured.err)

    return call


@pytest.fixture(scope="session")
def small() -> Path:
    """One layer, exported once for all tests that only look at it or copy it."""
    return made_once("small", lambda folder: make_checkpoint(folder, num_hidden_layers=1))


@pytest.fixture(scope="session")
def small_exports(small: Path) -> dict[str, Path]:
    return {target: exported(small, target) for target in ("gguf:f32", "gguf:q4_0", "onnx:int4")}


@pytest.fixture
def onnx_folder(small_exports: dict[str, Path], tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(small_exports["onnx:int4"], tmp_path / "onnx-int4"))


@pytest.fixture(scope="session")
def package() -> Path:
    """A whole package of a small model, to read or copy: its validation takes about a second."""
    return exported_package(GOLDEN / "base", SMALL_TARGETS, "--heldout-tokens", "128")


@pytest.fixture
def devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for emulated devices that is not the user's, and no mirror to fetch them from."""
    folder = tmp_path / "devices"
    monkeypatch.setenv("EMO_EXPORT_DEVICES", str(folder))
    monkeypatch.setenv("EMO_EXPORT_DEBIAN_MIRROR", f"file:{tmp_path}/no-mirror")
    return folder
