"""Engines in processes of their own: the same verdict; what one that crashes or hangs gives."""

from __future__ import annotations

import shutil
import signal
import tempfile
from pathlib import Path

import pytest

from emo_export.judging.apart import EngineHangs, judge_apart
from emo_export.judging.here import judge
from emo_export.parity.golden import Golden
from emo_export.spec import Spec
from tests.kit.bad_gguf import rewrite
from tests.kit.command import run_here

GGUF, ONNX = Spec.parse("gguf:f32"), Spec.parse("onnx:f32")


@pytest.fixture
def crashing(package: Path, tmp_path: Path) -> Path:
    """A package whose GGUF passes our checks, and fails an assertion of llama.cpp.

    Its vocabulary has a token twice.
    """
    folder = Path(shutil.copytree(package, tmp_path / "package"))
    (model,) = folder.glob("*.gguf")
    tokens = [f"t{i}" for i in range(511)]
    rewrite(model, tmp_path / "bad.gguf", {"tokenizer.ggml.tokens": [*tokens, tokens[0]]})
    (tmp_path / "bad.gguf").replace(model)
    return folder


def model_of(folder: Path, spec: Spec) -> Path:
    (found,) = folder.glob("*.gguf") if spec == GGUF else folder.glob("onnx-*")
    return found


def scratch() -> set[Path]:
    return set(Path(tempfile.gettempdir()).glob("emo-export-tmp-judge-*"))


@pytest.mark.parametrize("spec", [GGUF, pytest.param(ONNX, marks=pytest.mark.slow)], ids=str)
def test_the_verdict_is_that_of_an_engine_here(spec: Spec, package: Path) -> None:
    golden, path = Golden.load(package / "golden.npz"), model_of(package, spec)
    here, apart = judge(spec, path, golden), judge_apart(spec, path, golden)
    assert here.as_dict() == apart.as_dict()


def test_an_engine_that_crashes_is_a_result(crashing: Path) -> None:
    golden = Golden.load(crashing / "golden.npz")
    found = judge_apart(GGUF, model_of(crashing, GGUF), golden)
    assert found.crash is not None and found.crash.signal == signal.SIGABRT, found
    assert not found.passed and "GGML_ASSERT" in found.crash.said


def test_an_engine_that_does_not_answer_is_ended(package: Path) -> None:
    golden, before = Golden.load(package / "golden.npz"), scratch()
    with pytest.raises(EngineHangs, match=r"gguf:f32: .* for 0\.01 seconds .*--timeout"):
        judge_apart(GGUF, model_of(package, GGUF), golden, timeout=0.01)
    assert scratch() == before


@pytest.mark.slow
def test_the_command_tells_of_both(crashing: Path, package: Path) -> None:
    done = run_here("validate", crashing)
    assert done.code == 1, done.err
    assert "gguf:f32: ended by SIGABRT" in done.err and "onnx:f32" in done.out
    done = run_here("validate", crashing, "--target", "onnx:f32", "--timeout", "0.01")
    assert done.code == 2 and "did not answer for 0.01 seconds" in done.err, done.err
    for command in (["validate", "--device", "here", "--target", "onnx:f32"], ["verify", "--deep"]):
        done = run_here(command[0], package, *command[1:], "--timeout", "0.01")
        assert done.code == 1 and "ended by SIGALRM: it took longer than" in done.err, done.err
