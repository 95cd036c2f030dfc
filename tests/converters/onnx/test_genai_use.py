"""genai_config.json itself, the script in examples/ and the model card's code."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kit.command import Emo
from tests.kit.exporting import case, export_to, exported
from tests.kit.paths import NANO, ROOT
from tests.kit.synth import make_checkpoint

EXAMPLE = ROOT / "examples" / "genai_generate.py"


def test_every_field_is_the_model_s() -> None:
    config = json.loads((exported(NANO, "onnx:int4") / "genai_config.json").read_text("utf-8"))
    model, search = config["model"], config["search"]
    decoder = model.pop("decoder")
    assert model == {
        "type": "decoder",
        "bos_token_id": 4075,
        "eos_token_id": [4075],
        "pad_token_id": 4095,
        "context_length": 1024,
        "vocab_size": 4096,
    }
    sizes = {"head_size": 64, "hidden_size": 256, "num_hidden_layers": 3}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 4}
    assert {key: decoder[key] for key in sizes} == sizes and decoder["filename"] == "model.onnx"
    assert search["max_length"] == 1024 and search["do_sample"] is False


@pytest.mark.parametrize("graph", ["", "@if", "@standard"])
@pytest.mark.parametrize("name", ["gqa", "odd_36_32"])
def test_the_cache_is_shared_where_the_graph_can(name: str, graph: str) -> None:
    folder = exported(case(name).folder, f"onnx:f32{graph}")
    config, needs = (
        json.loads((folder / name).read_text("utf-8"))
        for name in ("genai_config.json", "emo_export.json")
    )
    shared = config["search"]["past_present_share_buffer"]
    assert shared is needs["share_kv_buffer"] is (name == "gqa" and graph != "@standard")
    assert config["model"]["decoder"]["num_key_value_heads"] == {"gqa": 2}.get(name, 3)


def test_ids_and_context_as_asked_for(tmp_path: Path) -> None:
    settings = {"bos_token_id": 3, "eos_token_id": [9, 8], "max_position_embeddings": 64}
    folder = make_checkpoint(tmp_path / "model", num_hidden_layers=1, pad_token_id=8, **settings)
    made = export_to(tmp_path, folder, onnx=["f32"])["onnx:f32"]
    model = json.loads((made / "genai_config.json").read_text("utf-8"))["model"]
    # A pad that ends texts would hide the end of a prompt.
    ids = (model["bos_token_id"], model["eos_token_id"], model["pad_token_id"])
    assert ids == (3, [9, 8], -1) and model["context_length"] == 64


def said(*command: str | Path, cwd: Path | None = None) -> str:
    done = subprocess.run(
        [sys.executable, *map(str, command)], cwd=cwd, capture_output=True, encoding="utf-8"
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_example_streams_what_run_writes(emo: Emo) -> None:
    folder = exported(NANO, "onnx:int4")
    for prompt in ("def main(", ""):
        ours = emo("run", folder, "-p", prompt, "-n", "64", "--temperature", "0").out
        assert said(EXAMPLE, folder, prompt).strip() == ours.strip() != ""


def test_the_card_s_code_runs_as_it_stands(tmp_path: Path, emo: Emo) -> None:
    done = emo("export", NANO, "-o", tmp_path / "out", "--to", "onnx:int4", "--no-golden")
    assert done.code == 0, done.err
    card = (tmp_path / "out" / "README.md").read_text("utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    (tmp_path / "card.py").write_text(code, "utf-8")
    run = ("run", tmp_path / "out" / "onnx-int4", "-p", "The", "-n", "64", "--temperature", "0")
    text = said(tmp_path / "card.py", cwd=tmp_path / "out")
    assert text.startswith("The") and text[3:].strip() == emo(*run).out.strip()
