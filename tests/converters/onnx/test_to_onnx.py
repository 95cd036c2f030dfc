"""ONNX folders: the file's layout by onnx's own tools, and what ONNX Runtime computes from it."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx.external_data_helper import load_external_data_for_model

from emo_export.converters.onnx.exact import SESSION_OPTIONS, exact_graph
from emo_export.converters.onnx.scheme import onnx_scheme
from emo_export.converters.onnx.writer import OnnxWriter
from emo_export.errors import EmoExportError
from emo_export.model.checkpoint import Checkpoint
from emo_export.model.names import Role, Slot
from emo_export.model.product import Product
from emo_export.runtimes.ort.model import OnnxModel
from emo_export.spec import ONNX, Spec
from tests.kit.exporting import (
    TIGHT,
    Array,
    assert_same,
    case,
    dequantised_logits,
    export_to,
    exported,
    in_pieces,
    kl,
    open_product,
    prefill,
    steps,
)
from tests.kit.oracle import oracle_logits
from tests.kit.paths import GOLDEN, GOLDENS, NANO
from tests.kit.synth import CONFIGS, FEATURES, LAYOUTS, make_checkpoint
from tests.kit.tiers import slow_beyond

EXACT = 1e-10  # mean KL at float activations; 1e-12 was measured
SHIPPED = dict.fromkeys(
    ("int8", "int4", "int2"), 5e-3
)  # int8 activations, on the trained model; 8e-4 was measured
NO_FIT = ("odd_36_32", "odd_40_24", "odd_48_20")
QUANTISABLE = [name for name in LAYOUTS if name not in NO_FIT]
TYPES = ("f32", "int8", "int4", "int2")


def exact(folder: Path) -> OnnxModel:
    """The folder's model at accuracy level 0."""
    graph = exact_graph(folder / "model.onnx")
    return OnnxModel(folder, threads=1, graph=graph, session_options=SESSION_OPTIONS)


@pytest.mark.parametrize("type_name", TYPES)
@pytest.mark.parametrize(
    "folder",
    slow_beyond([GOLDEN / "densefirst"], [NANO, GOLDEN / "densefirst"]),
    ids=lambda p: p.name,
)
def test_the_files_are_what_onnx_expects(folder: Path, type_name: str) -> None:
    made = exported(folder, f"onnx:{type_name}")
    onnx.checker.check_model(str(made / "model.onnx"))
    model = onnx.load(made / "model.onnx", load_external_data=False)
    size, spans = (made / "model.onnx.data").stat().st_size, []
    for tensor in model.graph.initializer:
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            assert len(tensor.raw_data) <= 64, tensor.name  # shapes and the like
            continue
        facts = {entry.key: entry.value for entry in tensor.external_data}
        begin, length = int(facts["offset"]), int(facts["length"])
        item = {onnx.TensorProto.FLOAT: 4, onnx.TensorProto.UINT8: 1}[tensor.data_type]
        assert facts["location"] == "model.onnx.data" and begin % 4096 == 0
        assert length == item * np.prod(tensor.dims)
        spans.append((begin, begin + length))
    spans.sort()
    assert spans[0][0] == 0 and spans[-1][1] == size
    for (_, end), (begin, _) in itertools.pairwise(spans):
        assert 0 <= begin - end < 4096
    load_external_data_for_model(model, str(made))


@pytest.mark.parametrize("type_name", TYPES)
def test_the_files_beside_the_graph(type_name: str) -> None:
    made = exported(NANO, f"onnx:{type_name}")
    names = {"config.json", "emo_export.json", "genai_config.json", "model.onnx", "model.onnx.data"}
    copied = {"tokenizer.json", "tokenizer_config.json", "generation_config.json"}
    assert {path.name for path in made.iterdir()} == names | copied
    assert (made / "tokenizer.json").read_bytes() == (NANO / "tokenizer.json").read_bytes()
    settings, given = (
        json.loads((folder / "tokenizer_config.json").read_text("utf-8")) for folder in (made, NANO)
    )
    assert given["tokenizer_class"] == "GPT2Tokenizer"
    assert settings == given | {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_input_names": ["input_ids", "attention_mask"],
    }
    generation = json.loads((made / "generation_config.json").read_text("utf-8"))
    assert generation == json.loads((NANO / "generation_config.json").read_text("utf-8"))
    config = json.loads((made / "config.json").read_text("utf-8"))
    original = json.loads((NANO / "config.json").read_text("utf-8"))
    assert "auto_map" not in config and config["head_dim"] == 64
    changed = {key for key in original | config if original.get(key) != config.get(key)}
    assert changed == {"auto_map", "head_dim", "model_type"}
    assert config["model_type"] == "olmoe" and config["architectures"] == ["EmoForCausalLM"]
    needs = json.loads((made / "emo_export.json").read_text("utf-8"))
    assert needs["model_type"] == "emo" and needs["type"] == type_name
    assert needs["share_kv_buffer"] is True
    assert tuple(map(int, needs["onnxruntime_min"].split("."))) >= (1, 31)


@pytest.mark.parametrize("name", slow_beyond(FEATURES, CONFIGS))
def test_float32_is_the_oracle(name: str) -> None:
    made = case(name)
    model = OnnxModel(exported(made.folder, "onnx:f32"), threads=1)
    for found in (prefill(model, made.ids), steps(model, made.ids)):
        assert_same(made.logits, found, TIGHT)
    assert_same(made.logits, in_pieces(model, made.ids, [7, 1, 12]), TIGHT)
    model.close()


@pytest.mark.parametrize("folder", [*(GOLDEN / n for n in GOLDENS), NANO], ids=lambda p: p.name)
def test_float32_is_the_published_code(folder: Path) -> None:
    golden = np.load(folder / "golden.npz")
    model = OnnxModel(exported(folder, "onnx:f32"), threads=1)
    assert_same(golden["logits"], prefill(model, golden["input_ids"]), TIGHT)
    model.close()


@pytest.mark.parametrize("type_name", ["int8", "int4"])
@pytest.mark.parametrize("name", QUANTISABLE)
def test_float_activations_are_the_dequantised_weights(name: str, type_name: str) -> None:
    made, target = case(name), f"onnx:{type_name}"
    want = dequantised_logits(made.folder, target, made.ids)
    assert kl(made.logits, want).mean() > 1e-6  # quantisation did change the weights
    model = exact(exported(made.folder, target))
    for found in (prefill(model, made.ids), steps(model, made.ids)):
        assert_same(want, found, EXACT)
    model.close()


@pytest.mark.slow
@pytest.mark.parametrize("type_name", ["int8", "int4", "int2"])
def test_the_trained_model(type_name: str) -> None:
    ids, target = np.load(NANO / "golden.npz")["input_ids"][:3], f"onnx:{type_name}"
    want = dequantised_logits(NANO, target, ids)
    model = exact(exported(NANO, target))
    for found in (prefill(model, ids), steps(model, ids)):
        assert_same(want, found, EXACT)
    model = OnnxModel(exported(NANO, target), threads=1)
    for found in (prefill(model, ids), steps(model, ids)):
        assert 1e-9 < kl(want, found).mean() <= SHIPPED[type_name]
        assert (found.argmax(-1) == want.argmax(-1)).mean() >= 0.95


def levels(model: onnx.ModelProto) -> list[int]:
    """Every accuracy_level of a graph; sets them to -1."""
    found = []
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "accuracy_level":
                found.append(attribute.i)
                attribute.i = -1
    return found


@pytest.mark.parametrize("level", [4, 0])
def test_the_accuracy_level_is_the_one_asked_for(level: int, tmp_path: Path) -> None:
    made = export_to(tmp_path, case("mha").folder, onnx=["int4"], accuracy_level=level)["onnx:int4"]
    shipped = onnx.load(made / "model.onnx", load_external_data=False)
    at_zero = onnx.load_from_string(exact_graph(made / "model.onnx"))
    # Per layer qkv, output, QMoE and the shared expert's two; the head.
    assert levels(shipped) == [level] * 11 and levels(at_zero) == [0] * 11
    assert shipped == at_zero  # in all but the levels, which are -1 now
    needs = json.loads((made / "emo_export.json").read_text("utf-8"))
    assert needs["accuracy_level"] == level


@pytest.mark.parametrize("type_name", ["int8", "int4"])
def test_widths_that_only_a_block_of_16_fits(type_name: str, tmp_path: Path) -> None:
    shape = {"hidden_size": 48, "num_attention_heads": 3, "intermediate_size": 16}
    folder = make_checkpoint(tmp_path / "model", **shape)
    made = export_to(tmp_path, folder, onnx=[type_name])[f"onnx:{type_name}"]
    blocks = {
        attribute.i
        for node in onnx.load(made / "model.onnx", load_external_data=False).graph.node
        for attribute in node.attribute
        if attribute.name == "block_size"
    }
    assert blocks == {16}
    ids = case("mha").ids
    want = dequantised_logits(folder, f"onnx:{type_name}", ids)
    assert_same(want, prefill(exact(made), ids), EXACT)
    assert kl(want, prefill(OnnxModel(made, threads=1), ids)).mean() <= 5e-3


@pytest.mark.parametrize("name", NO_FIT)
def test_a_width_that_fits_nothing_is_refused_by_name(name: str, tmp_path: Path) -> None:
    with pytest.raises(EmoExportError, match=r"model\..*\.weight: rows of \d+ fit no block of int"):
        export_to(tmp_path, case(name).folder, onnx=["int4"])
    assert list(tmp_path.iterdir()) == []


class Session:
    """A raw onnxruntime session; keeps the cache between calls, for any batch."""

    def __init__(self, folder: Path, *, exact: bool = False) -> None:
        config = json.loads((folder / "config.json").read_text("utf-8"))
        self._heads, self._size = config["num_key_value_heads"], config["head_dim"]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 4
        model: str | bytes = str(folder / "model.onnx")
        if exact:
            model = exact_graph(folder / "model.onnx")
            data = "session.model_external_initializers_file_folder_path"
            for key, value in {**SESSION_OPTIONS, data: str(folder)}.items():
                options.add_session_config_entry(key, value)
        self._session = onnxruntime.InferenceSession(model, options)
        names = [value.name for value in self._session.get_inputs()]
        assert names[:2] == ["input_ids", "attention_mask"]
        self._names, self.past = names[2:], {}

    def __call__(self, ids: Array, mask: Array) -> Array:
        """Ids (B, T) after what is cached, mask (B, cached + T) -> logits (B, T, V)."""
        empty = np.zeros((len(ids), self._heads, 0, self._size), np.float32)
        past = self.past or dict.fromkeys(self._names, empty)
        logits, *present = self._session.run(
            None, {"input_ids": ids, "attention_mask": mask} | past
        )
        self.past = dict(zip(self._names, present, strict=True))
        return np.asarray(logits)


@pytest.mark.parametrize("name", ["mqa", "odd_40_24", "no_shared_norm_topk", "dense_middle"])
def test_a_batch_of_equal_lengths(name: str) -> None:
    made = case(name)
    session = Session(exported(made.folder, "onnx:f32"))
    # GroupQueryAttention takes several tokens after a past for a batch of one only.
    edges = [0, 17, 18, 19, 20]
    parts = [session(made.ids[:, a:b], np.ones((2, b), int)) for a, b in itertools.pairwise(edges)]
    assert_same(made.logits, np.concatenate(parts, axis=1), TIGHT)
    heads = {"mqa": 1, "odd_40_24": 5}.get(name, 4)
    for value in session.past.values():
        assert value.shape[:3] == (2, heads, 20)


@pytest.mark.parametrize("hidden", [64, 32], ids=["fused", "standard"])
def test_the_whole_context_can_be_used(hidden: int, tmp_path: Path) -> None:
    settings = {"hidden_size": hidden, "max_position_embeddings": 40, "num_hidden_layers": 1}
    folder = make_checkpoint(tmp_path / "model", **settings)
    model = OnnxModel(export_to(tmp_path, folder, onnx=["f32"])["onnx:f32"], threads=1)
    ids = np.random.default_rng(2).integers(0, 500, (1, 40))
    want = oracle_logits(folder, ids)[0]
    assert model.context_length == 40
    assert_same(want, prefill(model, ids), TIGHT)
    assert_same(want, in_pieces(model, ids, [38, 1, 1]), TIGHT)
    with pytest.raises(EmoExportError, match="exceed the context of 40"):
        model.forward(ids[0, :1])


def writer_of(folder: Path, type_name: str) -> OnnxWriter:
    checkpoint = Checkpoint.open(case("mha").folder)
    settings: dict[str, Any] = {"context": 24, "accuracy_level": 4}
    scheme = onnx_scheme(Spec(ONNX, type_name), checkpoint.config)
    return OnnxWriter(folder, Product.whole(checkpoint), scheme, **settings)


def test_a_broken_tokenizer_config_is_refused_before_any_weight(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model", num_hidden_layers=1)
    (folder / "tokenizer_config.json").write_text("{", "utf-8")
    product = open_product(folder)
    with pytest.raises(EmoExportError, match=r"tokenizer_config\.json is not JSON"):
        OnnxWriter(
            tmp_path / "out",
            product,
            onnx_scheme(Spec(ONNX, "f32"), product.config),
            context=8,
            accuracy_level=4,
        )


def test_a_writer_that_is_not_fed_refuses_to_close(tmp_path: Path) -> None:
    writer = writer_of(tmp_path / "out", "int4")
    gate, up = Slot(Role.GATE, 0, 3), Slot(Role.UP, 0, 3)
    packed = writer.format_of(up).quantize(np.ones((32, 64), np.float32))
    with pytest.raises(EmoExportError, match="not open"):
        writer.close()
    writer.open()
    with pytest.raises(EmoExportError, match=rf"{up.name} came without its gate"):
        writer.write(up, 0, packed)
    writer.write(Slot(Role.GATE, 0, 2), 0, packed)
    with pytest.raises(EmoExportError, match="came without its gate"):
        writer.write(up, 0, packed)
    for slot in (gate, up, gate):
        writer.write(slot, 0, packed)
    with pytest.raises(EmoExportError, match=r"layers\.0\.experts\.fc1\.weight are written twice"):
        writer.write(up, 0, packed)
    with pytest.raises(EmoExportError, match=r"row 0 of \S+ was never written"):
        writer.close()
    assert not (tmp_path / "out" / "model.onnx").exists()
    writer.abort()
    total = sum(decl.nbytes for decl in writer.declarations())
    assert total <= (tmp_path / "out" / "model.onnx.data").stat().st_size
