"""--block-size and --tensor-type for ONNX: in the files, in the manifest, judged, refused."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest

from emo_export.files.manifest import Manifest
from emo_export.model.recipes import BLOCKS, Part
from tests.cli.test_cli_importance_refusals import refused
from tests.kit.command import NOT_FAILED, Emo
from tests.kit.synth import make_checkpoint

OVERRIDES = {"attention": "int4", "head": "int4b32", "embed": "int4", "shared_expert": "f32"}


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows that fit blocks of 128."""
    folder = tmp_path_factory.mktemp("wide") / "checkpoint"
    sizes = {"hidden_size": 256, "intermediate_size": 128, "num_experts": 4}
    return make_checkpoint(folder, num_hidden_layers=1, **sizes)


def blocks_of(folder: Path) -> dict[str, tuple[int, int]]:
    """(bits, block) of each operator with blocks, by its name."""
    graph = onnx.load(folder / "model.onnx", load_external_data=False).graph
    nodes, found = list(graph.node), {}
    while nodes:
        node = nodes.pop()
        values = {a.name: a.i for a in node.attribute}
        nodes += [inner for a in node.attribute for inner in a.g.node]
        if "block_size" in values:
            bits = values.get("expert_weight_bits") or values["bits"]
            found[node.name] = bits, values["block_size"]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("graph", ["qmoe", "if"])
def test_blocks_and_types_of_parts(graph: str, wide: Path, tmp_path: Path, emo: Emo) -> None:
    options = [w for role, name in OVERRIDES.items() for w in ("--tensor-type", f"{role}={name}")]
    spec = "onnx:int4" if graph == "qmoe" else "onnx:int4@if"
    arguments = (wide, "-o", tmp_path / "out", "--to", spec, "--block-size", "64", *options)
    done = emo("export", *arguments, "--heldout-tokens", "64", "--json")
    assert done.code in NOT_FAILED, done.err
    entry = Manifest.load(tmp_path / "out").targets[spec].as_dict()
    assert entry["recipe"] == {
        **{role: "f32" for role in ("router", "vector", "shared_expert")},
        **{role: "int4b64" for role in ("expert", "expert_down", "attention", "embed")},
        "head": "int4b32",
    }
    folder = tmp_path / "out" / entry["path"]
    found = blocks_of(folder)
    assert found["layers.0.qkv"] == (4, 64) and found["head"] == (4, 32)
    experts = [value for name, value in found.items() if ".experts" in name]
    assert set(experts) == {(4, 64)} and not any(".forced" in name for name in found)
    assert_exact(done.out)
    # The reference computed anew, from the manifest or from what the folder says of itself.
    if graph == "if":
        (tmp_path / "out" / "manifest.json").unlink()
    assert_exact(emo("validate", folder, "--reference", wide, "--json").out)


def assert_exact(output: str) -> None:
    (target,) = json.loads(output)["targets"]
    exact = [row["measured"]["kl_mean"] for row in target["rows"] if row["arithmetic"] == "exact"]
    assert len(exact) == 2 and max(exact) <= 1e-10


def test_the_default_block_and_what_does_not_fit_it(tmp_path: Path, emo: Emo) -> None:
    narrow = make_checkpoint(
        tmp_path / "narrow", hidden_size=256, intermediate_size=96, num_hidden_layers=1
    )
    done = emo("export", narrow, "-o", tmp_path / "out", "--to", "onnx:int4@if", "--no-golden")
    assert done.code == 0
    assert "do not fit int4b128 and are written as int4b32" in done.err
    found = blocks_of(tmp_path / "out" / "onnx-int4-if")
    assert found["layers.0.qkv"] == (8, BLOCKS[0])
    assert found["layers.0.experts.0.gate_up"] == (4, BLOCKS[0])
    assert found["layers.0.experts.0.down"] == (4, 32)


def test_only_the_if_graph_tells_down_from_gate_and_up(
    wide: Path, tmp_path: Path, emo: Emo
) -> None:
    override = ("--tensor-type", "expert_down=int8")
    line = refused(emo, wide, tmp_path, "--to", "onnx:int4", *override)
    assert "expert_down (int8b128) must have the same type" in line and "@if" in line
    to = ("--to", "onnx:int4@if", "--to", "gguf:q4_0", "--no-golden")
    assert emo("export", wide, "-o", tmp_path / "out", *to, *override).code == 0
    targets = Manifest.load(tmp_path / "out").targets
    assert (targets["onnx:int4@if"].recipe or {})[Part.EXPERT_DOWN.value] == "int8b128"
    assert (targets["gguf:q4_0"].recipe or {})[Part.EXPERT_DOWN.value] == "q4_0"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("gguf:q4_0", "--block-size", "64"), "--block-size is for onnx targets only"),
        (("onnx:f32", "--plain-attention"), "--plain-attention is for the graph @if"),
        (("onnx:f32", "--block-size", "64"), "--block-size is for int8, int4 and int2"),
        (("onnx:int4@if", "--tensor-type", "head=int2"), "the graph @if has no int2"),
        (("onnx:f32@if", "--tensor-type", "expert=int8"), "begin with int8 or int4"),
        (("onnx:int8@standard", "--block-size", "64"), "in the graphs @qmoe and @if"),
        (("onnx:int8@standard", "--tensor-type", "head=int4"), "has f32 and int8"),
        (("onnx:int8", "--tensor-type", "dense=f32"), "this model's ONNX has no such part"),
        (("onnx:int8", "--tensor-type", "head=q8_0"), "(onnx)"),
        (("onnx:int8", "--tensor-type", "router=int8"), "the router stays f32"),
    ],
)
def test_what_is_refused(
    arguments: tuple[str, ...], said: str, wide: Path, tmp_path: Path, emo: Emo
) -> None:
    assert said in refused(emo, wide, tmp_path, "--to", *arguments)


def test_a_folder_that_does_not_say_its_types(wide: Path, tmp_path: Path, emo: Emo) -> None:
    emo("export", wide, "-o", tmp_path / "out", "--to", "onnx:int8", "--no-golden")
    folder = (tmp_path / "out" / "onnx-int8").rename(tmp_path / "alone")
    needs = json.loads((folder / "emo_export.json").read_text())
    del needs["recipe"]
    (folder / "emo_export.json").write_text(json.dumps(needs))
    done = emo("validate", folder, "--reference", wide)
    assert done.code == 2 and "export it again" in done.err
    for recipe in (5, ["f32"], {"expert": ["int8b128", 5]}, {"expert": None}):
        (folder / "emo_export.json").write_text(json.dumps(needs | {"recipe": recipe}))
        done = emo("validate", folder, "--reference", wide)
        assert done.code == 2 and "emo_export.json: recipe " in done.err
