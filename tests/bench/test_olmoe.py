"""The stand-in in transformers, which the tests set up by themselves."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from emo_export.files.read_per_token import olmoe_bytes
from emo_export.model.config import EmoConfig
from tests.kit.exporting import export_to
from tests.kit.paths import ROOT
from tests.kit.side_environment import TRANSFORMERS_5, python_with
from tests.kit.synth import make_checkpoint, make_config

pytestmark = pytest.mark.slow

SCRIPT = """
import json, sys
from pathlib import Path
import numpy as np, torch
from emo_export.bench.olmoe import OlmoeStandIn
model = OlmoeStandIn(Path(sys.argv[1]), threads=1)
weights = dict(model._model.named_parameters())
ids = np.random.default_rng(0).integers(0, model.vocab_size, 12)
whole = model.forward(ids)
model.reset()
parts = [model.forward(piece) for piece in np.split(ids, [8, 9, 10, 11])]
model.reset()
last = model.forward(ids, last=True)
print(json.dumps({
    "types": sorted({str(w.dtype) for w in weights.values()}),
    "bytes": sum(w.numel() * w.element_size() for w in weights.values()),
    "shapes": [whole.shape, last.shape],
    "spread": float(whole.std()),
    "by_steps": float(np.abs(np.concatenate(parts) - whole).max()),
    "last": float(np.abs(last - whole[-1:]).max()),
    "engine": dict(model.describe()),
}))
"""


SHORT_OF_MEMORY = """
import sys
from emo_export.cli import bench as cli_bench
from emo_export.cli import main as cli
cli_bench.available_memory = lambda: 100_000
sys.stderr = sys.stdout
try:
    cli.main()
except SystemExit as stop:
    print(stop.code)
"""


def in_transformers(*arguments: object) -> str:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [str(python_with(TRANSFORMERS_5)), *map(str, arguments)]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return done.stdout


@pytest.mark.parametrize("changed", [{}, {"num_key_value_heads": 2, "tie_word_embeddings": True}])
def test_the_stand_in_is_an_olmoe_of_the_shape(changed: dict[str, object], tmp_path: Path) -> None:
    config = make_config(**changed)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    found = json.loads(in_transformers("-c", SCRIPT, path).splitlines()[-1])
    assert found["types"] == ["torch.bfloat16"]
    assert found["bytes"] == olmoe_bytes(EmoConfig.from_dict(config))
    assert found["shapes"] == [[12, 512], [1, 512]]
    # bfloat16 has 8 bits: steps through the cache differ from the whole by a few roundings.
    assert found["spread"] > 0.1
    assert found["by_steps"] < 0.2 * found["spread"]
    assert found["last"] < 0.1 * found["spread"]
    assert "in prefill" in found["engine"]["experts"]


def test_bench_beside_the_stand_in(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "checkpoint")
    model = export_to(tmp_path / "out", checkpoint, onnx=["int4"])["onnx:int4"]
    arguments = ["--olmoe-bf16", checkpoint, "--prefill", 16, "--decode", 4, "--depth", 4]
    arguments += ["--rounds", 2, "--json"]
    found = json.loads(in_transformers("-m", "emo_export.cli.main", "bench", model, *arguments))
    turns = [run["label"] for run in found["runs"]]
    assert turns == ["onnx:int4", "olmoe:bf16"] * 2
    assert found["models"][1]["engine"]["KV cache"] == "bf16"
    assert found["models"][1]["figures"]["decode"]["median"] > 0
    command = ["-c", SHORT_OF_MEMORY, "bench", model, "--olmoe-bf16", checkpoint]
    said = in_transformers(*command)
    assert "0.0 GB of memory are needed and 0.0 GB are available" in said
    assert said.split()[-1] == "2"
