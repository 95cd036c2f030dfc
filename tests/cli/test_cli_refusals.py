"""What the command line refuses, each in one sentence and with nothing left behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from emo_export.files.manifest import Manifest
from tests.kit.command import Emo
from tests.kit.paths import GOLDEN, NANO
from tests.kit.synth import make_checkpoint


def _break_missing(folder: Path) -> str:
    return _rewrite(folder, lambda t: t.pop("model.layers.1.self_attn.v_proj.weight"))


def _break_extra(folder: Path) -> str:
    def add(tensors: dict[str, np.ndarray]) -> None:
        tensors["model.layers.0.mlp.experts.99.up_proj.weight"] = np.zeros((4, 4), np.float32)

    _rewrite(folder, add)
    return "model.layers.0.mlp.experts.99.up_proj.weight"


def _break_shape(folder: Path) -> str:
    def cut(tensors: dict[str, np.ndarray]) -> None:
        tensors["model.norm.weight"] = tensors["model.norm.weight"][:-1].copy()

    _rewrite(folder, cut)
    return "model.norm.weight"


def _break_nan(folder: Path) -> str:
    def poison(tensors: dict[str, np.ndarray]) -> None:
        tensors["model.layers.1.mlp.experts.3.down_proj.weight"][5, 7] = np.nan

    _rewrite(folder, poison)
    return "model.layers.1.mlp.experts.3.down_proj.weight"


def _break_truncated(folder: Path) -> str:
    path = folder / "model.safetensors"
    os.truncate(path, path.stat().st_size - 100)
    return "model.safetensors"


def _break_index(folder: Path) -> str:
    shutil.rmtree(folder)
    make_checkpoint(folder, shards=3)
    (folder / "model-00002-of-00003.safetensors").unlink()
    return "model-00002-of-00003.safetensors"


def _break_config(folder: Path) -> str:
    config = json.loads((folder / "config.json").read_text())
    config["sliding_gate"] = 7
    (folder / "config.json").write_text(json.dumps(config))
    return "sliding_gate"


def _rewrite(folder: Path, change: Callable[[dict[str, np.ndarray]], object]) -> str:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    before = set(tensors)
    change(tensors)
    save_file(tensors, path)
    return next(iter(before - set(tensors)), "")


BROKEN = {
    "missing tensor": _break_missing,
    "extra tensor": _break_extra,
    "wrong shape": _break_shape,
    "NaN": _break_nan,
    "truncated shard": _break_truncated,
    "index names an absent shard": _break_index,
    "unknown config key": _break_config,
}


@pytest.mark.parametrize("how", BROKEN)
def test_broken_checkpoints(how: str, tmp_path: Path, emo: Emo) -> None:
    folder = make_checkpoint(tmp_path / "broken")
    named = BROKEN[how](folder)
    out = tmp_path / "results" / "out"
    done = emo("export", folder, "-o", out, "--to", "gguf:q8_0", "--to", "onnx:int4")
    assert done.code == 2
    errors = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and named in errors[0] and str(folder) in errors[0]
    assert not out.exists()
    assert not out.parent.exists() or list(out.parent.iterdir()) == []


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content.update(model=[]),
        lambda content: content["model"].update(vocab=7),
        lambda content: content["model"].update(merges={"a": 1}),
        lambda content: content.update(added_tokens=[3]),
        lambda content: content.update(pre_tokenizer="Split"),
        lambda content: content["pre_tokenizer"]["pretokenizers"][0]["pattern"].update(Regex="("),
    ],
)
@pytest.mark.parametrize("target", ["gguf:f32", "onnx:f32"])
def test_a_damaged_tokenizer_is_one_sentence(
    change: Callable[[dict], object], target: str, tmp_path: Path, emo: Emo
) -> None:
    folder = make_checkpoint(tmp_path / "broken")
    content = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    change(content)
    (folder / "tokenizer.json").write_text(json.dumps(content), "utf-8")
    done = emo("export", folder, "-o", tmp_path / "out", "--to", target)
    assert done.code == 2 and "tokenizer.json" in done.err and "Traceback" not in done.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--to", "gguf:q9_9"), "gguf:q9_9"),
        (("--to", "tflite:int8"), "tflite:int8"),
        (("--to", "onnx:int4@magic"), "onnx has @qmoe, @if, @standard"),
        (("--to", "onnx:int4@standard"), "int4 is possible as onnx:int4@qmoe, onnx:int4@if"),
        (("--to", "onnx:int4", "--to", "onnx:int4@qmoe"), "twice"),
        (("--to", "gguf:q4_0", "--to", "gguf:Q4_0"), "twice"),
        (("--to", "gguf:f32", "--context", "100000"), "--context"),
        (("--to", "gguf:f32", "--torch-device", "tpu"), "tpu"),
    ],
)
def test_wrong_usage(arguments: tuple[str, ...], said: str, tmp_path: Path, emo: Emo) -> None:
    done = emo("export", GOLDEN / "base", "-o", tmp_path / "out", *arguments)
    assert done.code == 2 and said in done.err
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_left_alone(tmp_path: Path, emo: Emo) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    arguments = ("export", GOLDEN / "pruned", "-o", out, "--to", "gguf:q8_0", "--no-golden")
    assert emo(*arguments).code == 2
    assert emo(*arguments, "--overwrite").code == 2
    assert (out / "thesis.txt").read_text() == "years of work"
    shutil.rmtree(out)
    assert emo(*arguments).code == 0
    assert emo(*arguments).code == 2
    assert emo(*arguments, "--overwrite").code == 0
    assert list(Manifest.load(out).targets) == ["gguf:q8_0"]
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_inexpressible_is_refused_before_any_work(tmp_path: Path, emo: Emo) -> None:
    folder = make_checkpoint(tmp_path / "two", num_shared_experts=2, num_experts_per_tok=4)
    done = emo("export", folder, "-o", tmp_path / "out", "--to", "gguf:f32")
    assert done.code == 2
    assert "num_shared_experts" in done.err and "onnx" in done.err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_interrupted_export_leaves_nothing(tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "emo_export.cli.main", "export", str(NANO), "-o", str(out)]
    process = subprocess.Popen(
        [*command, "--to", "onnx:int4"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 60
    while not (tmp_path / ".out.partial").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)  # handled as Ctrl-C is
    assert process.wait(60) == 130
    assert list(tmp_path.iterdir()) == []


def test_help_of_every_command_shows_an_example(emo: Emo) -> None:
    for command in ("export", "validate", "run", "bench", "inspect", "verify", "doctor"):
        done = emo(command, "--help")
        assert done.code == 0 and f"emo-export {command}" in done.out


@pytest.mark.parametrize(
    ("size", "said", "option"),
    [
        pytest.param(
            "20m", "out: needs 23.5 MB, its disk has", "--no-validate", marks=pytest.mark.slow
        ),
        ("18m", "No space left on device", "--no-golden"),
    ],
)
def test_a_disk_that_is_too_small_or_fills_up_is_named(
    tmp_path: Path, size: str, said: str, option: str
) -> None:
    """20 MB are too few for GGUF and golden.npz; of 18 somebody else takes 12 in the meantime."""
    script = (
        f'mount -t tmpfs -o size={size} tmpfs "$1" && shift; '
        '(until test "$(du -sk "$0"/.out.partial | cut -f1)" -gt 500; do sleep 0.01; done; '
        'head -c 12000000 /dev/zero > "$0/other") >/dev/null 2>&1 & other=$!; "$@"; code=$?; '
        'kill $other 2>/dev/null; rm -f "$0/other"; ls -A "$0"; exit $code'
    )
    unshare = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    if subprocess.run([*unshare, "true"], capture_output=True, check=False).returncode:
        pytest.skip("user namespaces are missing; allow kernel.unprivileged_userns_clone")
    command = [sys.executable, "-m", "emo_export.cli.main", "export", str(NANO), option]
    command += ["-o", str(tmp_path / "out"), "--to", "gguf:q4_0"]
    done = subprocess.run(
        [*unshare, script, str(tmp_path), str(tmp_path), *command],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2 and done.stdout == ""
    assert said in done.stderr
