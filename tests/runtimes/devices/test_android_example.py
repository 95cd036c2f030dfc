"""Slow: examples/android, compiled and run in desktop Java beside our own runtime."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from emo_export.runtimes.generate import generate
from emo_export.runtimes.ort.model import OnnxModel
from emo_export.runtimes.ort.tokenizer import HfTokenizer
from emo_export.runtimes.sampling import GREEDY
from tests.kit.exporting import exported
from tests.kit.java_tools import compile_java, java, native_folder, unavailable
from tests.kit.paths import NANO, ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(unavailable() is not None, reason=str(unavailable())),
]
EXAMPLE = ROOT / "examples" / "android"
# What follows the third has bytes that are no characters.
PROMPTS = ("def main(", "In the beginning", "Ünï—日本", "x")
TOKENS = 40


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("java")
    compile_java(folder / "classes", EXAMPLE / "EmoText.java")
    native_folder(folder / "native")
    return folder


@pytest.mark.parametrize("target", ["onnx:int4", "onnx:int4@if"])
def test_writes_what_our_runtime_writes(place: Path, target: str) -> None:
    folder = exported(NANO, target)
    model, tokenizer = OnnxModel(folder, threads=1), HfTokenizer(folder)
    for prompt in PROMPTS:
        ids = tokenizer.encode(prompt)
        said = generate(model, tokenizer, ids, GREEDY, max_tokens=TOKENS)
        arguments = ("EmoText", folder, prompt, TOKENS)
        found = java(place / "classes", place / "native", place / "cache", *arguments)
        assert found == "".join(said.texts()) + "\n", prompt
    model.close()


def test_refuses_a_prompt_beyond_the_context(place: Path) -> None:
    folder = exported(NANO, "onnx:int4@if")
    arguments = ("EmoText", folder, "word " * 2000, 1)
    with pytest.raises(RuntimeError, match=r"has \d+ tokens, expected 1 to 1024"):
        java(place / "classes", place / "native", place / "cache", *arguments)


def test_the_readme_calls_what_the_example_has(tmp_path: Path) -> None:
    """Its Activity, with Android's classes left out: what is left is ours to compile."""
    readme = (EXAMPLE / "README.md").read_text("utf-8")
    (called,) = re.findall(r"try \(EmoText .*?catch .*?\n            \}", readme, re.DOTALL)
    called = called.replace("runOnUiThread(() -> view.append(text))", "System.out.print(text)")
    body = called.replace("runOnUiThread(() -> view.append(error.toString()))", "error.toString()")
    activity = tmp_path / "Activity.java"
    activity.write_text(f"class Activity {{ void run(java.io.File folder) {{ {body} }} }}", "utf-8")
    compile_java(tmp_path / "classes", EXAMPLE / "EmoText.java", activity)
