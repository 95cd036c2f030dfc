"""`export --keep` and `prune`: the same experts, bytes and figures, in one pass or in two."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import gguf
import numpy as np
import pytest
from safetensors.numpy import load_file

from emo_export.errors import NotEnoughTextError
from emo_export.files.manifest import Manifest
from emo_export.parity.golden import FULL, ORIGINAL, Golden
from tests.kit.command import Emo
from tests.kit.paths import GOLDEN

TEXT = "def mean(values):\n    return sum(values) / len(values)\n\nint main(void) { return 0; }\n"
BASE = GOLDEN / "base"
TARGETS = ("--to", "gguf:iq4_nl", "--to", "onnx:int4")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT * 8, "utf-8")
    return path


def same_weights(one: Path, two: Path) -> None:
    """Of every target of a folder; the models' names may differ."""
    for entry in Manifest.load(one).files:
        if entry.path.endswith((".data", ".onnx")):
            assert (one / entry.path).read_bytes() == (two / entry.path).read_bytes(), entry.path
        elif entry.path.startswith("model-") and entry.path.endswith(".gguf"):
            ours, theirs = (gguf.GGUFReader(folder / entry.path) for folder in (one, two))
            pairs = list(zip(ours.tensors, theirs.tensors, strict=True))
            assert pairs and all(a.name == b.name for a, b in pairs)
            assert all(np.array_equal(a.data, b.data) for a, b in pairs)


@pytest.mark.parametrize("rounding", ["weighted", pytest.param("gptq", marks=pytest.mark.slow)])
def test_one_pass_equals_two(rounding: str, tmp_path: Path, text: Path, emo: Emo) -> None:
    one, two, pruned = (tmp_path / name for name in ("one", "two", "pruned"))
    choosing = ("--keep", 6, "--calibration", text, "--rescale")
    targets = (*TARGETS, "--rounding", rounding, "--heldout", text, "--heldout-tokens", 64)
    made = emo("export", BASE, "-o", one, *choosing, *targets)
    assert made.code in (0, NotEnoughTextError.exit_code), made.err
    first = emo("prune", BASE, "-o", pruned, *choosing, "--no-loss")
    assert first.code == 0, first.err
    then = emo("export", pruned, "-o", two, "--calibration", text, *targets, "--no-validate")
    assert then.code == 0, then.err
    same_weights(one, two)
    assert "The routed ones were scaled" in (one / "README.md").read_text("utf-8")
    found, want = (Golden.load(folder / "golden.npz").variants for folder in (one, two))
    np.testing.assert_array_equal(found[ORIGINAL].logits, want[ORIGINAL].logits)
    assert FULL in found and FULL not in want
    again = emo("validate", one, "--reference", BASE, "--target", "gguf:iq4_nl")
    assert again.code in (0, NotEnoughTextError.exit_code), again.err


@pytest.mark.slow
def test_experts_that_are_tried_first_are_written_alike(
    tmp_path: Path, text: Path, emo: Emo
) -> None:
    one, two, pruned = (tmp_path / name for name in ("one", "two", "pruned"))
    choosing = ("--keep", 6, "--calibration", text, "--method", "reap")
    plain = ("--to", "gguf:iq4_nl", "--no-golden")
    assert emo("export", BASE, "-o", one, *choosing, *plain).code == 0
    assert emo("prune", BASE, "-o", pruned, *choosing, "--no-loss").code == 0
    assert emo("export", pruned, "-o", two, "--calibration", text, *plain).code == 0
    same_weights(one, two)


def test_a_pruned_checkpoint_holds_the_experts_unchanged(
    tmp_path: Path, text: Path, emo: Emo
) -> None:
    source = tmp_path / "base"
    shutil.copytree(BASE, source)
    beside = Path("additional_chat_templates", "tools.jinja")
    (source / beside).parent.mkdir()
    (source / beside).write_text("{{ tools }}", "utf-8")
    args = ("--keep", "25%", "--calibration", text, "--max-shard-size", "200KB", "--json")
    done = emo("prune", source, "-o", tmp_path / "p", *args)
    assert done.code == 0, done.err
    told = json.loads(done.out)
    metadata = json.loads((tmp_path / "p" / "pruning_metadata.json").read_text("utf-8"))
    published = json.loads((GOLDEN / "pruned" / "pruning_metadata.json").read_text("utf-8"))
    assert told["pruning"] == metadata and set(metadata) == set(published)
    assert metadata["prune_keep_k"] == 4 and metadata["original_model"] == "base"
    index = json.loads((tmp_path / "p" / "model.safetensors.index.json").read_text("utf-8"))
    shards = sorted(set(index["weight_map"].values()))
    assert len(shards) > 1 and all((tmp_path / "p" / name).is_file() for name in shards)
    stored = {k: v for name in shards for k, v in load_file(tmp_path / "p" / name).items()}
    assert stored.keys() == index["weight_map"].keys()
    assert index["metadata"]["total_size"] == sum(array.nbytes for array in stored.values())
    assert (tmp_path / "p" / beside).read_text("utf-8") == "{{ tools }}"
    assert not (tmp_path / "p" / beside.name).exists()
    held = load_file(BASE / "model.safetensors")
    for layer, kept in enumerate(metadata["experts_kept_per_layer"]):
        at = f"model.layers.{layer}.mlp"
        np.testing.assert_array_equal(stored[f"{at}.gate.weight"], held[f"{at}.gate.weight"][kept])
        for place, expert in enumerate(kept):
            name = "experts.{}.down_proj.weight"
            want = held[f"{at}.{name.format(expert)}"]
            np.testing.assert_array_equal(stored[f"{at}.{name.format(place)}"], want)
    assert (tmp_path / "p" / "tokenizer.json").read_bytes() == (
        BASE / "tokenizer.json"
    ).read_bytes()
    whole = {one["domain"]: one for one in told["loss"]}["all"]
    assert whole["ratio"] == pytest.approx(whole["after"] / whole["before"])


def test_what_makes_no_sense_is_refused(tmp_path: Path, text: Path, emo: Emo) -> None:
    base = ("export", BASE, "-o", tmp_path / "x", "--to", "gguf:q4_0")
    for args, said in (
        (("--keep", 6), "--keep needs --calibration"),
        (("--keep", 16, "--calibration", text), "nothing would be left out"),
        (("--keep", "many", "--calibration", text), "expected a number of experts"),
        (("--keep", 0, "--calibration", text), "expected a number of experts|too few"),
    ):
        done = emo(*base, *args)
        assert done.code == 2, done.err
        assert any(part in done.err for part in said.split("|")), done.err
        assert not (tmp_path / "x").exists()
    args = ("--keep", 6, "--calibration", text)
    wrong = emo("prune", BASE, "-o", tmp_path / "x", *args, "--max-shard-size", "0GB")
    assert wrong.code == 2 and "--max-shard-size 0GB" in wrong.err
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "mine").write_text("kept", "utf-8")
    there = emo("prune", BASE, "-o", tmp_path / "x", *args)
    assert there.code == 2 and "exists already" in there.err
