"""What all runtimes share: light imports, and the count of cores."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from emo_export.base import threads
from emo_export.interfaces import Runtime, Tokenizer
from emo_export.runtimes.llama.model import LlamaCpp, LlamaTokenizer
from emo_export.runtimes.ort.model import HfTokenizer, OnnxModel

RUNTIMES: tuple[type[Runtime], ...] = (LlamaCpp, OnnxModel)  # mypy checks the protocols here
TOKENIZERS: tuple[type[Tokenizer], ...] = (LlamaTokenizer, HfTokenizer)
HEAVY = {"torch", "onnx", "transformers", "gguf", "safetensors", "onnxruntime", "xllamacpp"}


@pytest.mark.parametrize(
    "module", ["ort.model", "llama.model", "generate", "ort.tokenizer", "ort.prepacked"]
)
def test_importing_a_runtime_loads_nothing_heavy(module: str) -> None:
    code = f"import sys, emo_export.runtimes.{module}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert HEAVY.isdisjoint(done.stdout.split())
    assert not any(name.startswith("emo_export.converters") for name in done.stdout.split())


def test_using_a_runtime_loads_no_exporter(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom emo_export.errors import EmoExportError\n"
        "from emo_export.runtimes.llama.abi import load_library\n"
        "from emo_export.runtimes.ort.model import OnnxModel\n"
        "load_library()\n"
        "try:\n    OnnxModel(Path(sys.argv[1]))\n"
        "except EmoExportError:\n    print(*sys.modules)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "onnxruntime" in loaded
    assert (HEAVY - {"onnxruntime"}).isdisjoint(loaded)


def test_two_threads_of_a_core_count_once(tmp_path: Path) -> None:
    for cpu, siblings in enumerate(["0,2", "1,3", "0,2", "1,3"]):
        folder = tmp_path / f"cpu{cpu}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(siblings + "\n", encoding="ascii")
    assert threads.physical_cores(frozenset(range(4)), tmp_path) == 2
    assert threads.physical_cores(frozenset({0, 2}), tmp_path) == 1
    assert threads.physical_cores(frozenset(range(5)), tmp_path) == 5  # one tells nothing


def test_a_machine_has_a_core() -> None:
    assert 1 <= threads.physical_cores() <= len(threads.usable_cpus())
