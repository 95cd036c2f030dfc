"""Fixtures that several test modules share."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

# Before torch is imported: with several test processes on two cores, its threads would only wait
# for each other (a pass over emo-nano took 58 s instead of 2).
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A job in a shell's background inherits SIGINT ignored, and so would the commands that tests
# interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

from emo_export.cli.main import main
from tests.kit.command import Done, Emo
from tests.kit.exporting import export_to
from tests.kit.packages import SMALL_TARGETS
from tests.kit.packages import package as exported_package
from tests.kit.paths import GOLDEN, NANO
from tests.kit.synth import make_checkpoint


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
def emo(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Emo:
    def call(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["emo-export", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as stop:
            main()
        captured = capfd.readouterr()
        return Done(int(stop.value.code or 0), captured.out, captured.err)

    return call


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One layer, exported once for all tests that only look at it or copy it."""
    return make_checkpoint(tmp_path_factory.mktemp("small") / "checkpoint", num_hidden_layers=1)


@pytest.fixture(scope="session")
def small_exports(small: Path) -> dict[str, Path]:
    return export_to(small.parent / "out", small, gguf=["f32", "q4_0"], onnx=["int4"])


@pytest.fixture
def onnx_folder(small_exports: dict[str, Path], tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(small_exports["onnx:int4"], tmp_path / "onnx-int4"))


@pytest.fixture(scope="session")
def package() -> Path:
    """A whole package of a small model, to read or copy: its validation takes about a second."""
    return exported_package(GOLDEN / "base", SMALL_TARGETS)


@pytest.fixture
def devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for emulated devices that is not the user's, and no mirror to fetch them from."""
    folder = tmp_path / "devices"
    monkeypatch.setenv("EMO_EXPORT_DEVICES", str(folder))
    monkeypatch.setenv("EMO_EXPORT_DEBIAN_MIRROR", f"file:{tmp_path}/no-mirror")
    return folder
