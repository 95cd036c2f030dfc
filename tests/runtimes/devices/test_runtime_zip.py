"""The light runtime as a zip: it runs alone, with numpy and the engine."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from emo_export.errors import EmoExportError
from emo_export.runtimes.devices.source_zip import runtime_zip
from tests.kit.packages import SMALL_TARGETS, package

MODULES = (
    "emo_export.runtimes.devices.far.on_device",
    "emo_export.runtimes.devices.far.on_device_bench",
)
FOREIGN = ("click", "rich", "torch", "onnx", "transformers", "gguf", "ml_dtypes", "safetensors")


def names(archive: bytes) -> set[str]:
    return set(zipfile.ZipFile(io.BytesIO(archive)).namelist())


def test_the_zip_has_the_device_part_alone() -> None:
    found = names(runtime_zip(MODULES))
    assert {
        "emo_export/runtimes/devices/far/on_device.py",
        "emo_export/parity/tolerances.json",
    } < found
    assert {"emo_export/runtimes/ort/model.py", "emo_export/runtimes/llama/model.py"} < found
    assert "emo_export/runtimes/__init__.py" in found and "emo_export/__init__.py" in found
    assert not [name for name in found if "cli" in name.partition("/")[2].split("_")]
    assert not [name for name in found if "converters" in name]


def test_the_same_sources_make_the_same_bytes() -> None:
    code = "import sys; from emo_export.runtimes.devices.source_zip import runtime_zip as z; "
    code += "sys.stdout.buffer.write(z(sys.argv[1:]))"
    other = {**os.environ, "PYTHONHASHSEED": "7", "TZ": "Pacific/Apia"}
    command = [sys.executable, "-c", code, *reversed(MODULES)]
    done = subprocess.run(command, capture_output=True, env=other, check=True)
    assert done.stdout == runtime_zip(MODULES)


def test_a_module_that_is_not_there_is_refused() -> None:
    with pytest.raises(EmoExportError, match=r"emo_export\.nothing"):
        runtime_zip(["emo_export.nothing"])


@pytest.fixture
def bare(tmp_path: Path) -> dict[str, str]:
    """An environment in which the zip, numpy and the engines can be imported, and no more."""
    (tmp_path / "runtime.zip").write_bytes(runtime_zip(MODULES))
    site, only = Path(np.__file__).parent.parent, tmp_path / "only"
    only.mkdir()
    for name in ("numpy", "onnxruntime", "tokenizers", "xllamacpp"):
        for found in site.glob(f"{name}*"):
            (only / found.name).symlink_to(found)
    return {"PATH": os.environ["PATH"], "PYTHONPATH": f"{tmp_path}/runtime.zip:{only}"}


def run(bare: dict[str, str], *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-S", "-P", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=bare, check=False)


@pytest.mark.parametrize("spec", SMALL_TARGETS)
def test_a_target_is_judged_from_the_zip_alone(
    golden: Path, bare: dict[str, str], spec: str
) -> None:
    code = (
        "import sys\nfrom emo_export.runtimes.devices.far.on_device import main\n"
        "code = main(sys.argv[1:])\nprint(*sys.modules)\n"
        "print(sys.modules['emo_export.runtimes.opening'].__file__, file=sys.stderr)\n"
        "raise SystemExit(code)"
    )
    folder = package(golden / "base", SMALL_TARGETS)
    done = run(bare, "-c", code, folder, spec)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["result"]["passed"]
    # main has given stdout to stderr
    loaded = {name.partition(".")[0] for name in done.stderr.split()}
    assert "numpy" in loaded and loaded.isdisjoint(FOREIGN)
    assert "runtime.zip" in done.stderr


def test_the_speed_is_measured_from_the_zip_alone(golden: Path, bare: dict[str, str]) -> None:
    folder = package(golden / "base", SMALL_TARGETS)
    settings = ("--prefill", 8, "--decode", 4, "--depth", 2, "--rounds", 3)
    module = "emo_export.runtimes.devices.far.on_device_bench"
    done = run(bare, "-m", module, folder / "onnx-f32", *settings)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert sorted(found["decode_rounds"])[1] == found["decode_tokens_per_second"] > 0
    assert sorted(found["prefill_rounds"])[1] == found["prefill_tokens_per_second"] > 0
    assert found["memory"]["resident"] > found["memory"]["anonymous"] > 1 << 20
    assert found["engine"]["engine"] == "ONNX Runtime" and found["load_seconds"] > 0


def test_too_short_a_context_is_an_answer(golden: Path, bare: dict[str, str]) -> None:
    folder = package(golden / "base", SMALL_TARGETS)
    module = "emo_export.runtimes.devices.far.on_device_bench"
    done = run(bare, "-m", module, folder / "onnx-f32", "--prefill", 10**6)
    assert done.returncode == 2
    assert "exceed the context" in json.loads(done.stdout)["error"]
