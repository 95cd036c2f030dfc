"""Types for a budget: within it, better than others of as many bytes, stored, repeated, refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from emo_export.files.manifest import Manifest
from emo_export.runtimes.families import family_at
from tests.cli.test_cli_importance_refusals import refused
from tests.kit.command import NOT_FAILED, Emo
from tests.kit.synth import make_checkpoint

TEXT = "The quick brown fox jumps over the lazy dog, and the dog sleeps on. " * 12


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a tokenizer, and rows that fit blocks of 64."""
    folder = tmp_path_factory.mktemp("budget") / "checkpoint"
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_experts": 4}
    make_checkpoint(folder, num_hidden_layers=2, num_experts_per_tok=2, **sizes)
    (folder / "text.txt").write_text(TEXT)
    return folder


def made(checkpoint: Path, out: Path, emo: Emo, *arguments: object) -> dict[str, Any]:
    text = ("--calibration", checkpoint / "text.txt")
    done = emo("export", checkpoint, "-o", out, *arguments, *text, "--no-golden", "--json")
    assert done.code == 0, done.err
    found: dict[str, Any] = json.loads(done.out)["types"]
    return found


@pytest.mark.slow
def test_what_a_token_reads_stays_within_a_budget(
    checkpoint: Path, tmp_path: Path, emo: Emo
) -> None:
    fixed = tmp_path / "fixed"
    emo("export", checkpoint, "-o", fixed, "--to", "onnx:int4", "--no-golden")
    onnx = fixed / "onnx-int4"
    limit = family_at(onnx).per_token(onnx).weights
    out = tmp_path / "out"
    to = ("--to", "onnx:auto", "--to", "gguf:auto", "--rounding", "nearest")
    found = made(checkpoint, out, emo, *to, "--read-per-token", f"{limit / 1e3}kB")
    entries = Manifest.load(out).targets
    for name, told in found.items():
        path = out / entries[name].path
        read = family_at(path).per_token(path).weights
        assert told["used"] == pytest.approx(read) and 0.85 * limit < read <= limit
        recipe = {
            part: t for part, t in (entries[name].recipe or {}).items() if part in told["types"]
        }
        assert recipe == {
            p: t if isinstance(t, str) else tuple(t) for p, t in told["types"].items()
        }
        assert sum(site["kl"] for site in told["sites"]) == pytest.approx(told["kl_sum"])
        assert told["kl_sum"] / 3 < told["kl"] < 3 * told["kl_sum"]  # of random weights
    assert json.loads((out / "recipe.json").read_text()) == found
    assert "recipe.json" in (out / "README.md").read_text()
    # Repeated without text, and rounded alike, the ONNX folder has the same bytes.
    repeated = tmp_path / "repeated"
    recipe_file = ("--recipe", out / "recipe.json")
    done = emo("export", checkpoint, "-o", repeated, "--to", "onnx:auto", *recipe_file)
    assert done.code in NOT_FAILED, done.err
    for name in ("model.onnx", "model.onnx.data"):
        assert (repeated / "onnx-auto" / name).read_bytes() == (
            out / "onnx-auto" / name
        ).read_bytes()


@pytest.mark.slow
def test_bytes_and_bits_of_a_file(checkpoint: Path, tmp_path: Path, emo: Emo) -> None:
    found = made(checkpoint, tmp_path / "bits", emo, "--to", "gguf:auto", "--bits", 6.5)
    assert 6 < found["gguf:auto"]["used"] <= 6.5
    path = tmp_path / "bits" / "model-AUTO.gguf"
    size = path.stat().st_size + 5000
    made(checkpoint, tmp_path / "size", emo, "--to", "gguf:auto", "--size", f"{size / 1e3}kB")
    again = (tmp_path / "size" / "model-AUTO.gguf").stat().st_size
    assert path.stat().st_size - 40000 < again <= size


def test_what_makes_no_sense_is_refused(checkpoint: Path, tmp_path: Path, emo: Emo) -> None:
    text = ("--calibration", checkpoint / "text.txt")
    auto = ("--to", "onnx:auto")
    line = refused(emo, checkpoint, tmp_path, *auto)
    assert "--read-per-token" in line and "--recipe FILE" in line
    assert "is for targets of the type auto" in refused(
        emo, checkpoint, tmp_path, "--to", "onnx:int4", "--bits", 4, *text
    )
    assert "needs --calibration" in refused(emo, checkpoint, tmp_path, *auto, "--bits", 4)
    line = refused(emo, checkpoint, tmp_path, *auto, "--bits", 3, *text)
    assert "takes at least" in line and "bits a weight" in line
    assert "there is no such profile" in refused(
        emo, checkpoint, tmp_path, *auto, "--fit", "pi", *text
    )
    bad = tmp_path / "recipe.json"
    bad.write_text('{"gguf:auto": {"types": {"head": "q8_0"}}}')
    line = refused(emo, checkpoint, tmp_path, *auto, "--recipe", bad)
    assert "has no types for onnx:auto" in line
    line = refused(emo, checkpoint, tmp_path, "--to", "gguf:auto", "--recipe", bad)
    assert "no type of its own for embed" in line
    line = refused(
        emo, checkpoint, tmp_path, *auto, "--tensor-type", "head=int4", "--bits", 6, *text
    )
    assert "--tensor-type is for named types" in line
