"""Hostile files, as the command line meets them: exit code 2 and a sentence."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fuzz.hostile import DEEP, shard, tensor
from tests.fuzz.readers import within_limits
from tests.kit.bad_gguf import rewrite
from tests.kit.command import Emo

Files = dict[str, Path]


def pipe(path: Path) -> Path:
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    return path


def zeros(path: Path) -> Path:
    path.unlink(missing_ok=True)
    path.symlink_to("/dev/zero")
    return path


def deep(path: Path) -> Path:
    path.write_bytes(b'{"a": ' + b"[" * DEEP)
    return path


def refused(emo: Emo, *words: object) -> str:
    with within_limits(seconds=2):
        done = emo(*words)
    assert done.code == 2 and done.err.startswith("error: "), done
    assert "Traceback" not in done.err and not done.out
    return done.err


@pytest.mark.parametrize("made", [pipe, zeros, deep])
@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_checkpoint(
    name: str, made: Callable[[Path], Path], small: Path, emo: Emo, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(small, tmp_path / "model"))
    made(folder / name)
    refused(emo, "export", folder, "--to", "gguf:q4_0", "-o", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_overlapping_tensors(small: Path, emo: Emo, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(small, tmp_path / "model"))
    overlap = shard({"a": tensor([6], 0, 24), "b": tensor([3], 12, 24)})
    (folder / "model.safetensors").write_bytes(overlap)
    said = refused(emo, "export", folder, "--to", "gguf:q4_0", "-o", tmp_path / "out")
    assert "tensor b begins at byte" in said


def test_weights_outside_of_an_onnx_folder(onnx_folder: Path, emo: Emo) -> None:
    model = onnx_folder / "model.onnx"
    model.write_bytes(model.read_bytes().replace(b"model.onnx.data", b"../del.onnx.dat"))
    assert "outside of its folder" in refused(emo, "run", onnx_folder, "-p", "x")


@pytest.mark.parametrize("made", [pipe, zeros])
def test_a_graph_that_is_no_file(made: Callable[[Path], Path], onnx_folder: Path, emo: Emo) -> None:
    made(onnx_folder / "model.onnx")
    refused(emo, "run", onnx_folder, "-p", "x")
    made(onnx_folder / "model.onnx.data")
    refused(emo, "run", onnx_folder, "-p", "x")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("rope.dimension_count", 7),
        ("block_count", 0),
        ("attention.key_length", 1),
        ("attention.layer_norm_rms_epsilon", float("nan")),
    ],
)
def test_keys_at_which_llama_cpp_aborts(
    key: str, value: float, small_exports: Files, emo: Emo, tmp_path: Path
) -> None:
    path = rewrite(small_exports["gguf:f32"], tmp_path / "m.gguf", {f"ARCH.{key}": value})
    assert key in refused(emo, "run", path, "-p", "x")


@pytest.mark.slow
def test_inspecting_loads_no_engine(package: Path, small: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from emo_export.inspect.checkpoint import inspect_path\n"
        "for path in map(Path, sys.argv[1:]): inspect_path(path)\n"
        "print({'onnxruntime', 'xllamacpp', 'tokenizers'} & set(sys.modules))"
    )
    (model,) = package.glob("*.gguf")
    command = [sys.executable, "-c", code, package, model, small]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
