"""What `import emo_export` offers, used as a script of somebody else would."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import emo_export
from emo_export.errors import EmoExportError
from tests.kit.oracle import oracle_logits
from tests.kit.paths import ROOT

HEAVY = ("numpy", "torch", "onnx", "onnxruntime", "gguf", "rich", "click", "xllamacpp")


def test_importing_it_is_light() -> None:
    code = (
        "import sys, emo_export; emo_export.validate, emo_export.export\n"
        f"assert not set({HEAVY!r}) & set(sys.modules)\n"
        "assert [name for name in sys.modules if name.startswith('emo_export')] == ['emo_export']\n"
        "import emo_export.exporting, emo_export.validating\n"
        "assert callable(emo_export.export) and callable(emo_export.validate)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_function_has_an_example() -> None:
    for name in set(emo_export.__all__) - {"__version__"}:
        text = getattr(emo_export, name).__doc__
        assert re.search(rf"Example:\s+`.*\b{name}\(", text) and "EmoExportError" in text


def test_from_a_checkpoint_to_text(tmp_path: Path, golden: Path) -> None:
    source = golden / "base"
    checkpoint = emo_export.open_checkpoint(source)
    made = emo_export.export(checkpoint, tmp_path / "out", ["gguf:f32", "onnx:f32"])
    assert made.passed and [result.target for result in made.results] == ["gguf:f32", "onnx:f32"]
    with pytest.raises(EmoExportError, match="exists already"):
        emo_export.export(str(source), str(tmp_path / "out"), "gguf:f32")
    ids = list(range(1, 8))
    # llama.cpp's own cache is float16
    for target, cache, error in (
        ("gguf:f32", None, 0.05),
        ("gguf:f32", "f32", 1e-4),
        ("onnx:f32", None, 1e-4),
    ):
        (result,) = emo_export.validate(tmp_path / "out", [target])
        assert result.passed and result.rows
        with emo_export.load(tmp_path / "out", target, kv_cache=cache) as model:
            found = model.logits(ids)
            np.testing.assert_array_equal(model.logits(ids), found)  # from an empty context
        want = oracle_logits(source, np.array([ids]))[0][0]
        assert found.shape == want.shape and np.abs(found - want).max() < error


def test_text(tmp_path: Path) -> None:
    emo_export.export(ROOT / "examples" / "emo-nano", tmp_path / "out", ["onnx:int8"], golden=False)
    with emo_export.load(tmp_path / "out") as model:
        texts = {"".join(model.text("The", max_tokens=8, temperature=0)) for _ in range(2)}
    assert len(texts) == 1 and texts.pop()
    with pytest.raises(EmoExportError, match=r"golden\.npz"):
        emo_export.validate(tmp_path / "out")


def test_experts_for_a_text(tmp_path: Path, golden: Path) -> None:
    (tmp_path / "text.txt").write_text("def mean(values): return sum(values)\n" * 9, "utf-8")
    kinds = {"calibration": tmp_path / "text.txt", "golden": False}  # one needs no list
    made = emo_export.export(
        golden / "base", tmp_path / "out", "onnx:f32", keep="25%", method="reap", **kinds
    )
    assert made.manifest.kept is not None and {len(e) for e in made.manifest.kept} == {4}
    for wrong, said in (({"method": "best"}, "method best"), ({"keep": 99}, "nothing would be")):
        with pytest.raises(EmoExportError, match=said):
            emo_export.export(
                golden / "base", tmp_path / "x", ["onnx:f32"], **{"keep": 4, **kinds, **wrong}
            )
