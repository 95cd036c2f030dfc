"""The graphs beside the default one: what they compute, what they are made of, what they refuse."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx.reference import ReferenceEvaluator

from emo_export.converters.onnx.data import ExternalData
from emo_export.converters.onnx.exact import SESSION_OPTIONS, exact_graph
from emo_export.converters.onnx.graph import Graph
from emo_export.converters.onnx.kinds import KINDS
from emo_export.converters.onnx.scheme import onnx_scheme
from emo_export.errors import EmoExportError
from emo_export.files.onnx_needs import read_requirements
from emo_export.inspect.checkpoint import inspect_path
from emo_export.model.config import EmoConfig
from emo_export.model.recipes import ONNX_RECIPES
from emo_export.parity.judge import tolerances
from emo_export.reference.passes import logits
from emo_export.runtimes.families import family_at
from emo_export.runtimes.ort.model import OnnxModel
from emo_export.spec import GGUF, ONNX, Spec
from tests.converters.onnx.test_to_onnx import EXACT, NO_FIT, SHIPPED, Session
from tests.kit.exporting import (
    TIGHT,
    Array,
    assert_same,
    case,
    dequantised_logits,
    dequantised_source,
    export_plain,
    export_to,
    exported,
    in_pieces,
    kl,
    open_product,
    prefill,
    steps,
)
from tests.kit.paths import GOLDEN, GOLDENS, NANO
from tests.kit.synth import CONFIGS, FEATURES, LAYOUTS, make_checkpoint
from tests.kit.tiers import slow_beyond

GOLDEN_FOLDERS = [*(GOLDEN / n for n in GOLDENS), NANO]
OTHERS = [graph for graph in KINDS if graph != "qmoe"]
QUANTISED = [
    (name, f"onnx:{kind}@{graph}")
    for graph in OTHERS
    for kind in ONNX_RECIPES[graph]
    for name in LAYOUTS
    if kind != "f32" and not (graph == "if" and name in NO_FIT)  # rows fit any width
]


def exact(folder: Path) -> OnnxModel:
    """The folder's model with float activations."""
    graph = exact_graph(folder / "model.onnx")
    return OnnxModel(folder, threads=1, graph=graph, session_options=SESSION_OPTIONS)


def nodes_of(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Every node, those of branches and bodies included."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from nodes_of(attribute.g)


@pytest.mark.parametrize("graph", OTHERS)
@pytest.mark.parametrize("name", slow_beyond(FEATURES, CONFIGS))
def test_float32_is_the_oracle(name: str, graph: str) -> None:
    made = case(name)
    model = OnnxModel(exported(made.folder, f"onnx:f32@{graph}"), threads=1)
    for found in (prefill(model, made.ids), steps(model, made.ids)):
        assert_same(made.logits, found, TIGHT)
    assert_same(made.logits, in_pieces(model, made.ids, [7, 1, 12]), TIGHT)
    model.close()


@pytest.mark.parametrize("graph", OTHERS)
@pytest.mark.parametrize(
    "folder", slow_beyond([GOLDEN / "base", NANO], GOLDEN_FOLDERS), ids=lambda p: p.name
)
def test_float32_is_the_published_code(folder: Path, graph: str) -> None:
    golden = np.load(folder / "golden.npz")
    model = OnnxModel(exported(folder, f"onnx:f32@{graph}"), threads=1)
    ids = golden["input_ids"][:2]
    assert_same(golden["logits"][:2], prefill(model, ids), TIGHT)
    model.close()


@pytest.mark.parametrize(
    ("name", "target"), slow_beyond([q for q in QUANTISED if q[0] in FEATURES], QUANTISED)
)
def test_float_activations_are_the_dequantised_weights(name: str, target: str) -> None:
    made = case(name)
    want = dequantised_logits(made.folder, target, made.ids)
    assert kl(made.logits, want).mean() > 1e-6  # quantisation did change the weights
    model = exact(exported(made.folder, target))
    for found in (prefill(model, made.ids), steps(model, made.ids)):
        assert_same(want, found, EXACT)
    model.close()


@pytest.mark.slow
@pytest.mark.parametrize("target", sorted({target for _, target in QUANTISED}))
def test_the_trained_model(target: str) -> None:
    ids = np.load(NANO / "golden.npz")["input_ids"][:3]
    want = dequantised_logits(NANO, target, ids)
    model = exact(exported(NANO, target))
    for found in (prefill(model, ids), steps(model, ids)):
        assert_same(want, found, EXACT)
    model = OnnxModel(exported(NANO, target), threads=1)
    for found in (prefill(model, ids), steps(model, ids)):
        kind = Spec.parse(target).type
        assert 1e-9 < kl(want, found).mean() <= SHIPPED[kind]
        assert (found.argmax(-1) == want.argmax(-1)).mean() >= 0.95


@pytest.mark.parametrize("graph", KINDS)
def test_a_graph_has_the_operators_of_its_kind(graph: str) -> None:
    folder = exported(case("mha").folder, f"onnx:int8@{graph}")
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    ops = {node.op_type for node in nodes_of(model.graph)}
    telling = {"qmoe": {"QMoE"}, "if": {"If", "MatMulNBits"}, "standard": {"Scan", "Attention"}}
    assert telling[graph] <= ops
    for other in KINDS.keys() - {graph}:
        assert not telling[other] <= ops
    kind = KINDS[graph]
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    assert opsets == {"": kind.opset} | ({"com.microsoft": 1} if kind.microsoft else {})
    assert {node.domain for node in nodes_of(model.graph)} == set(opsets)


@pytest.mark.parametrize("graph", KINDS)
def test_a_folder_says_what_it_is(graph: str) -> None:
    folder = exported(case("mha").folder, f"onnx:int8@{graph}")
    assert str(family_at(folder).entry_of(folder).spec) == (
        "onnx:int8" if graph == "qmoe" else f"onnx:int8@{graph}"
    )
    needs = json.loads((folder / "emo_export.json").read_text("utf-8"))
    assert needs["graph"] == graph and needs["type"] == "int8"
    assert needs["onnxruntime_min"] == KINDS[graph].onnxruntime_min
    found = inspect_path(folder)
    assert (found.facts["graph"]["kind"], found.warnings) == (graph, [])
    assert found.facts["needs"]["onnxruntime"] == KINDS[graph].onnxruntime_min


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("kind", ["f32", "int4"])
@pytest.mark.parametrize("heads", [4, 8])  # of 16 and of 8 features
def test_a_folder_asks_for_the_version_that_its_operators_need(
    heads: int, kind: str, plain: bool, tmp_path: Path
) -> None:
    checkpoint = make_checkpoint(tmp_path / "checkpoint", num_attention_heads=heads)
    folder = tmp_path / "plain"
    if plain:
        export_plain(folder, checkpoint, kind)
    else:
        folder = export_to(tmp_path, checkpoint, onnx=(f"{kind}@if",))[f"onnx:{kind}@if"]
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    ops, bits = set(), set()
    for node in nodes_of(model.graph):
        ops.add(node.op_type)
        bits |= {a.i for a in node.attribute if a.name == "bits" and node.op_type == "MatMulNBits"}
    fused = "GroupQueryAttention" in ops
    assert fused == (heads == 4 and not plain)
    needed = "1.22" if fused or 8 in bits else "1.21"
    assert (needed == "1.21") == (plain or (not fused and kind == "f32"))
    assert read_requirements(folder).onnxruntime_min == needed
    stored = {prop.key: prop.value for prop in model.metadata_props}
    assert stored["emo_export.onnxruntime_min"] == needed


@pytest.mark.parametrize("kind", ["f32", "int4"])
def test_plain_attention_is_the_dequantised_reference(kind: str, tmp_path: Path) -> None:
    made = case("gqa")
    product, ids = open_product(made.folder), made.ids
    source = dequantised_source(product, export_plain(tmp_path / "plain", made.folder, kind))
    want = np.stack(logits(product.config, source, list(ids)))
    model = exact(tmp_path / "plain")
    for found in (prefill(model, ids), steps(model, ids)):
        assert_same(want, found, EXACT)
    model.close()


@pytest.mark.parametrize(
    ("name", "type_name"),
    [(n, "int8") for n in LAYOUTS]
    + slow_beyond([(n, "f32") for n in FEATURES], [(n, "f32") for n in CONFIGS]),
)
def test_the_standard_graph_needs_no_onnx_runtime(name: str, type_name: str) -> None:
    made, exactly = case(name), type_name == "f32"
    folder = exported(made.folder, f"onnx:{type_name}@standard")
    model = onnx.load(folder / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    inferred = onnx.shape_inference.infer_shapes(
        model, check_type=True, strict_mode=True, data_prop=True
    )
    known = {v.name for v in [*inferred.graph.value_info, *inferred.graph.output]}
    assert {name for node in model.graph.node for name in node.output} <= known
    found = divergence_of(model, Session(folder), made.ids, 2e-5 if exactly else 0.05)
    # An activation half-way between two int8 values may fall either way, and moves one row.
    assert np.median(found) <= TIGHT and found.max() <= (TIGHT if exactly else 1e-2)
    if not exactly:  # with float activations nothing can fall
        plain = onnx.load_from_string(exact_graph(folder / "model.onnx"))
        onnx.load_external_data_for_model(plain, str(folder))
        found = divergence_of(plain, Session(folder, exact=True), made.ids, 2e-5)
        assert found.max() <= TIGHT


def divergence_of(model: onnx.ModelProto, session: Session, ids: Array, room: float) -> Array:
    """KL of every position between onnx's evaluator and ONNX Runtime; caches within `room`."""
    reference = ReferenceEvaluator(model)
    names = [value.name for value in model.graph.input][2:-1]
    shape = [value.dim_value for value in model.graph.input[2].type.tensor_type.shape.dim]
    past = dict.fromkeys(names, np.zeros((2, shape[1], 0, shape[3]), np.float32))
    divergence = []
    for start, end in ((0, 5), (5, 6), (6, 8)):
        piece, mask = ids[:, start:end], np.ones((2, end), np.int64)
        logits, *present = reference.run(None, {"input_ids": piece, "attention_mask": mask} | past)
        divergence.append(kl(logits, session(piece, mask)).ravel())
        past = dict(zip(names, present, strict=True))
        for key, value in past.items():
            np.testing.assert_allclose(session.past[key], value, atol=room)
    return np.concatenate(divergence)


@pytest.mark.parametrize("last_only", [False, True])
@pytest.mark.parametrize("graph", KINDS)
def test_logits_of_the_last_position_alone(graph: str, last_only: bool, tmp_path: Path) -> None:
    made, target = case("gqa"), f"f32@{graph}"
    folder = exported(made.folder, f"onnx:{target}")
    if last_only:
        folder = export_to(tmp_path, made.folder, onnx=[target], last_only=True)[f"onnx:{target}"]
    model, session = OnnxModel(folder, threads=1), Session(folder)
    # Ours names how many it wants; another engine gets the default.
    assert_same(made.logits, prefill(model, made.ids), TIGHT)
    default = session(made.ids, np.ones_like(made.ids))
    assert_same(made.logits[:, -1:] if last_only else made.logits, default, TIGHT)
    for row, want in zip(made.ids, made.logits, strict=True):
        model.reset()
        model.forward(row[:7], last=True)
        found = model.forward(row[7:], last=True)
        assert found.shape == (1, want.shape[-1])
        assert_same(want[-1:], found, TIGHT)
    needs = json.loads((folder / "emo_export.json").read_text("utf-8"))
    assert needs["logits_to_keep"] == int(last_only)


def test_an_outlier_of_one_token_costs_the_others_nothing() -> None:
    # With one scale for both, row 1 would round to nothing.
    graph = Graph(KINDS["standard"], 4)
    data = np.random.default_rng(4).standard_normal((2, 64)).astype(np.float32)
    data[0] *= 1e6
    weight = np.random.default_rng(5).integers(0, 256, (64, 8)).astype(np.uint8)
    out = graph.int8_matmul("x", "w", "s", "product")
    ends = [
        onnx.helper.make_tensor_value_info(name, kind, shape)
        for name, kind, shape in (
            ("x", onnx.TensorProto.FLOAT, (2, 64)),
            ("w", onnx.TensorProto.UINT8, (64, 8)),
            ("s", onnx.TensorProto.FLOAT, (8,)),
            (out, onnx.TensorProto.FLOAT, (2, 8)),
        )
    ]
    model = graph.model(ends[:3], ends[3:], ExternalData())
    session = onnxruntime.InferenceSession(model.SerializeToString())
    feeds = {"x": data, "w": weight, "s": np.ones(8, np.float32)}
    want = data.astype(np.float64) @ (weight.astype(np.float64) - 128)
    found = session.run(None, feeds)[0]
    assert np.abs(found - want).max(axis=1) / np.abs(want).max(axis=1) == pytest.approx(0, abs=0.02)


def test_an_expert_that_no_token_chose_is_not_computed(tmp_path: Path) -> None:
    folder = exported(case("mha").folder, "onnx:f32@if")
    options = onnxruntime.SessionOptions()
    options.enable_profiling, options.profile_file_prefix = True, str(tmp_path / "run")
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), options)
    feeds = {value.name: np.zeros((1, 4, 0, 16), np.float32) for value in session.get_inputs()[2:]}
    one = np.ones((1, 1), np.int64)
    session.run(["logits"], feeds | {"input_ids": one, "attention_mask": one})
    events = json.loads(Path(session.end_profiling()).read_text("utf-8"))
    ran = {e["name"].removesuffix("_kernel_time") for e in events if e["cat"] == "Node"}
    down = {name for name in ran if ".experts." in name and name.endswith(".down")}
    assert len(down) == 2 * 2  # K routed experts in each of two layers


@pytest.mark.parametrize(
    ("spec", "target"),
    [
        ("onnx:int4@qmoe", Spec(ONNX, "int4")),
        ("ONNX:Int4@IF", Spec(ONNX, "int4", "if")),
        ("onnx:f32", Spec(ONNX, "f32", "qmoe")),
        ("gguf:q4_0", Spec(GGUF, "q4_0")),
    ],
)
def test_a_spec_names_its_graph(spec: str, target: Spec) -> None:
    assert Spec.parse(spec) == target
    assert Spec.parse(str(target)) == target and "@qmoe" not in str(target)


@pytest.mark.parametrize("spec", ["onnx:int4@magic", "onnx:int4@", "gguf:q4_0@if"])
def test_an_unknown_graph_is_refused_naming_those_there_are(spec: str) -> None:
    graphs = ", ".join(f"@{graph}" for graph in KINDS)
    with pytest.raises(EmoExportError, match=rf"is not known; onnx has {graphs}$"):
        Spec.parse(spec)


def test_a_type_that_a_graph_lacks_is_refused_naming_the_graphs_that_have_it() -> None:
    config = EmoConfig.from_json(NANO / "config.json")
    with pytest.raises(EmoExportError, match="onnx:int3@if is not a known type; choose one of f32"):
        onnx_scheme(Spec(ONNX, "int3", "if"), config)
    say = "the standard graph has f32, int8 only; int4 is possible as onnx:int4@qmoe, onnx:int4@if"
    with pytest.raises(EmoExportError, match=f"^onnx:int4@standard: {say}$"):
        onnx_scheme(Spec(ONNX, "int4", "standard"), config)
    with pytest.raises(EmoExportError, match="graph 'magic' is not known; choose one of qmoe, if"):
        onnx_scheme(Spec(ONNX, "int4", "magic"), config)


def test_limits_are_those_of_the_type() -> None:
    assert tolerances(Spec.parse("onnx:int4@if")) == tolerances(Spec.parse("onnx:int4"))
    with pytest.raises(EmoExportError, match="onnx:int3@if: tolerances"):
        tolerances(Spec.parse("onnx:int3@if"))


@pytest.mark.parametrize(
    ("name", "model_type"), [("mha", "olmoe"), ("gqa", "nemotron"), ("head_dim", "nemotron")]
)
def test_the_model_type_that_optimum_is_told_fits_the_heads(name: str, model_type: str) -> None:
    config = json.loads((exported(case(name).folder, "onnx:f32") / "config.json").read_text())
    assert config["model_type"] == model_type
