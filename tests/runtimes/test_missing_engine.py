"""A device with one of the two engines, or none."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kit.packages import quantised_package
from tests.kit.paths import NANO
from tests.kit.without import without


@pytest.fixture(scope="module")
def folder() -> Path:
    return quantised_package()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("blocked", "has", "lacks", "extra"),
    [
        ("xllamacpp", "onnx:int4", "gguf:q4_0", "[llama]"),
        ("onnxruntime", "gguf:q4_0", "onnx:int4", "[ort]"),
    ],
)
def test_one_engine(
    blocked: str, has: str, lacks: str, extra: str, folder: Path, tmp_path: Path
) -> None:
    half = without(blocked, tmp_path, "validate", folder)
    assert half.returncode == 3
    assert f"{has}: pass" in half.stdout
    assert lacks in half.stderr and extra in half.stderr and f"--target {has}" in half.stderr
    chosen = without(blocked, tmp_path, "validate", folder, "--target", has)
    assert chosen.returncode == 0
    assert without(blocked, tmp_path, "run", folder, "-p", "a", "-n", "4").returncode == 0
    refused = without(blocked, tmp_path, "run", folder, "--target", lacks, "-p", "a")
    assert refused.returncode == 3 and extra in refused.stderr


@pytest.mark.slow
def test_no_tokenizers_library_and_no_client_of_a_hub(folder: Path, tmp_path: Path) -> None:
    blocked = "tokenizers,huggingface_hub"
    for command in (["validate", folder], ["run", folder, "-p", "a", "--target", "onnx:int4"]):
        done = without(blocked, tmp_path, *command)
        assert done.returncode == 0, done.stderr


def test_no_engine(folder: Path, tmp_path: Path) -> None:
    for command in (["validate", folder], ["run", folder, "-p", "a"]):
        done = without("xllamacpp,onnxruntime", tmp_path, *command)
        assert done.returncode == 3 and "pip install" in done.stderr


@pytest.mark.slow
def test_no_converter(tmp_path: Path) -> None:
    for blocked in ("torch", "gguf", "onnx"):
        done = without(blocked, tmp_path, "export", NANO, "-o", tmp_path / "x", "--to", "gguf:f32")
        assert done.returncode == 3 and "[convert]" in done.stderr
        assert not (tmp_path / "x").exists()


@pytest.mark.slow
def test_a_device_without_converters_says_what_it_left_out(folder: Path, tmp_path: Path) -> None:
    done = without("torch,gguf,onnx,ml_dtypes", tmp_path, "validate", folder)
    assert done.returncode == 0
    assert (
        done.stdout.count("not compared") == 2 and "exact" not in done.stdout.split("against:")[0]
    )
