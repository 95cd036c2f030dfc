"""`plan` as the command line runs it."""

from __future__ import annotations

import json
from pathlib import Path

from tests.kit.command import Emo

ASKED = ("--to", "gguf:q4_0", "--to", "onnx:int4", "--keep", "all", "--keep", "1/4")


def test_every_target_at_every_count(emo: Emo, golden: Path) -> None:
    done = emo("plan", golden / "base", *ASKED, "--json")
    found = json.loads(done.out)
    assert done.code == 0 and found["context"] == 512
    listed = [(kept["experts"], t["target"]) for kept in found["kept"] for t in kept["targets"]]
    assert listed == [(k, t) for k in (16, 4) for t in ("gguf:q4_0", "onnx:int4")]
    for kept in found["kept"]:
        assert kept["export"]["disk"] > sum(target["bytes"] for target in kept["targets"])
        assert "seconds" not in kept["export"]
        steps = [kept["export"][k] for k in ("converting", "with_reference", "validated_least")]
        assert steps == sorted(steps)
    table = emo("plan", golden / "base", *ASKED, "--time")
    assert table.code == 0 and "without validation (" in table.out and "pi4-4gb" not in table.out


def test_the_type_of_the_kv_cache_counts_where_an_engine_takes_it(emo: Emo, golden: Path) -> None:
    def caches(*options: str) -> list[tuple[str, int]]:
        done = emo("plan", golden / "base", *ASKED[:4], "--keep", "4", "--json", *options)
        (kept,) = json.loads(done.out)["kept"]
        return [(found["kv_cache"], found["memory"]["cache"]) for found in kept["targets"]]

    (kind, half), single = caches()
    assert (kind, single[0]) == ("f16", "f32") and single[1] == 2 * half
    assert caches("--kv-cache", "q8_0") == [("q8_0", half * 34 // 64), single]
    assert caches("--kv-cache", "f32") == [("f32", 2 * half), single]
    assert caches("--kv-cache", "int8") == [("f16", half), ("int8", half // 2)]


def test_fit_names_what_to_take(emo: Emo, golden: Path) -> None:
    done = emo("plan", golden / "base", *ASKED, "--fit", "pi4-4gb", "--json")
    assert done.code == 0
    assert json.loads(done.out)["fit"]["chosen"]["experts"] == 16
    told = emo("plan", golden / "base", *ASKED, "--fit", "pi4-4gb")
    assert told.code == 0 and "keep all experts as onnx:int4" in told.out
    assert emo("plan", golden / "base", "--fit", "pi9").code == 2


def test_a_model_that_no_count_makes_small_enough_exits_1(emo: Emo, tmp_path: Path) -> None:
    """A config without weights, of a model as large as none is."""
    shape = {
        "model_type": "emo",
        "vocab_size": 100352,
        "hidden_size": 8192,
        "intermediate_size": 8192,
        "num_hidden_layers": 8,
        "num_attention_heads": 64,
        "num_experts": 16,
        "num_experts_per_tok": 4,
        "num_shared_experts": 1,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-6,
        "rope_theta": 500000.0,
    }
    (tmp_path / "config.json").write_text(json.dumps(shape))
    line = ("plan", tmp_path, "--to", "gguf:q4_0", "--keep", "1/4", "--fit", "pi4-4gb")
    done = emo(*line, "--json")
    fit = json.loads(done.out)["fit"]
    assert done.code == 1 and fit["chosen"] is None
    assert fit["short_by"] == fit["least"]["memory"]["total"] - fit["usable"] > 0
    assert "nothing fits in 3.76 GB" in done.err and "too much" in done.err
