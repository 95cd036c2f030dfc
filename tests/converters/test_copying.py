"""Experts left out of a package: the file that an export of the pruned checkpoint would be."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import onnx
import pytest
from gguf import GGUFReader
from onnx import numpy_helper

from emo_export.converters.gguf.graph import FORCE
from emo_export.converters.gguf.scheme import gguf_scheme
from emo_export.converters.gguf.tokenizer import read_tokenizer
from emo_export.converters.gguf.told import config_told
from emo_export.converters.gguf.writer import GgufWriter
from emo_export.converters.safetensors.writer import SafetensorsWriter
from emo_export.errors import EmoExportError
from emo_export.families import FAMILIES
from emo_export.families.package import Package, copy_rows
from emo_export.model.checkpoint import Checkpoint
from emo_export.model.config import EmoConfig
from emo_export.model.names import Role, Slot
from emo_export.model.product import Product
from emo_export.parity.result import NotCompared
from emo_export.pruning import write_json
from emo_export.reference.passes import logits
from emo_export.runtimes.package import chosen_targets
from tests.kit.bad_gguf import rewrite
from tests.kit.exporting import TIGHT, assert_same, export_to, exported, prefill, write_all
from tests.kit.paths import GOLDEN
from tests.kit.synth import CONFIGS, FEATURES, make_checkpoint
from tests.kit.tiers import slow_beyond
from tests.kit.workspace import made_once

IDS = np.random.default_rng(4).integers(0, 500, (1, 20))


def checkpoint_of(name: str) -> Path:
    if name == "base":
        return GOLDEN / name
    if name == "templates":
        return made_once("chat-templates-to-prune", with_templates)
    return made_once(name, functools.partial(make_checkpoint, **CONFIGS[name]))


def with_templates(folder: Path) -> None:
    make_checkpoint(folder)
    (folder / "additional_chat_templates").mkdir()
    (folder / "chat_template.jinja").write_text("{{ messages }}", "utf-8")
    (folder / "additional_chat_templates" / "tools.jinja").write_text("{{ tools }}", "utf-8")


def package_at(path: Path) -> Package:
    folder, found = chosen_targets(path)
    entry = next(iter(found.values()))
    return FAMILIES[entry.spec.family].package(entry, folder / entry.path)


def some_of(config: EmoConfig) -> list[Sequence[int]]:
    """Half of the experts of each layer, others in each; those that every token uses among them."""
    rng = np.random.default_rng(9)
    kept = []
    for shape in config.layers:
        count = max(shape.num_experts // 2 - len(shape.forced), 1 if shape.num_experts else 0)
        drawn = rng.choice(shape.routed, count, replace=False) if count else []
        kept.append([*map(int, drawn), *shape.forced])
    return kept


def pruned(package: Package, kept: Sequence[Sequence[int]], place: Path) -> Product:
    product = Product.keeping(package, kept)
    writer = package.writer(product, place)
    writer.open()
    copy_rows(package, product, writer)
    writer.close()
    return product


def exported_pruned(name: str, target: str, kept: Sequence[Sequence[int]], to: Path) -> Path:
    """The same experts kept of the checkpoint, then exported."""
    source, folder = checkpoint_of(name), to / "checkpoint"
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.safetensors", "*.index.json"))
    product = Product.keeping(Checkpoint.open(source), kept)
    write_all(product, SafetensorsWriter(folder, product, 1 << 40))
    write_json(folder / "config.json", product.raw)
    family, _, kind = target.partition(":")
    return export_to(to, folder, **{family: (kind,)})[target]


def files_in(folder: Path) -> list[str]:
    return [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]


ALIKE = [("templates", "gguf:f32"), ("templates", "onnx:f32")]
ALIKE += [("base", "gguf:q4_0"), ("gqa", "gguf:q8_0"), ("no_shared", "gguf:f16")]
ALIKE += [("dense_first", "gguf:q4_0"), ("tied", "gguf:q4_0"), ("rope_linear", "gguf:bf16")]
ALIKE += [("no_shared_norm_topk", "gguf:q4_0"), ("always_active", "gguf:q8_0")]
ALIKE += [("dense_middle_narrow", "gguf:q4_0"), ("head_dim", "gguf:q8_0")]
ALIKE += [("base", "onnx:int4"), ("base", "onnx:int4@if"), ("tied", "onnx:int8@standard")]
ALIKE += [("two_shared", "onnx:int4"), ("always_active", "onnx:int8"), ("head_dim", "onnx:f32")]
ALIKE += [("dense_first_bias", "onnx:int8@if"), ("attention_bias", "onnx:int4@if")]


@pytest.mark.parametrize(
    ("name", "target"), slow_beyond([one for one in ALIKE if one[0] in FEATURES], ALIKE)
)
def test_every_byte_is_that_of_an_export_of_the_pruned_checkpoint(
    name: str, target: str, tmp_path: Path
) -> None:
    package = package_at(exported(checkpoint_of(name), target))
    kept = some_of(Checkpoint.open(checkpoint_of(name)).config)
    want = exported_pruned(name, target, kept, tmp_path)
    pruned(package, kept, tmp_path / "found")
    if want.is_file():
        assert (tmp_path / "found").read_bytes() == want.read_bytes()
        return
    names, found = (sorted(files_in(folder)) for folder in (want, tmp_path / "found"))
    assert names == found
    for file in names:
        assert (tmp_path / "found" / file).read_bytes() == (want / file).read_bytes(), file


def test_a_model_in_two_files_becomes_one(tmp_path: Path) -> None:
    """Whether there is a shared expert is told by the second, which holds what domains share."""
    product = Product.whole(Checkpoint.open(checkpoint_of("no_shared")))
    config, parts = product.config, tmp_path / "x-00001-of-00002.gguf"
    settings: dict[str, Any] = {"model_name": "test", "context": config.context_length()}
    tokenizer = read_tokenizer(product.path, config)
    scheme = gguf_scheme("f16", config)
    writer = GgufWriter(parts, config, scheme, tokenizer=tokenizer, split=True, **settings)
    write_all(product, writer)
    assert (tmp_path / "x-00002-of-00002.gguf").is_file()
    pruned(package_at(parts), some_of(config), tmp_path / "one.gguf")
    pruned(package_at(exported(product.path, "gguf:f16")), some_of(config), tmp_path / "two.gguf")
    assert (tmp_path / "one.gguf").read_bytes() == (tmp_path / "two.gguf").read_bytes()


def test_kept_blocks_of_a_gguf_are_the_file_s_own(tmp_path: Path) -> None:
    """By gguf-py's reader, of a file in types that differ from layer to layer."""
    source = exported(GOLDEN / "base", "gguf:q4_k_m")
    package = package_at(source)
    kept = pruned(package, some_of(package.config), tmp_path / "x.gguf").kept
    old, new = (
        {t.name: t for t in gguf.GGUFReader(p).tensors} for p in (source, tmp_path / "x.gguf")
    )
    assert list(old) == list(new)
    for name, tensor in old.items():
        want = tensor.data
        if "_exps" in name or "ffn_gate_inp" in name:
            *routed, shared = kept[int(name.split(".")[1])]
            assert shared == 15  # which stands apart
            want = want[routed]
        assert new[name].tensor_type == tensor.tensor_type, name
        np.testing.assert_array_equal(new[name].data, want, name)
    fields = gguf.GGUFReader(tmp_path / "x.gguf").fields
    for key, field in gguf.GGUFReader(source).fields.items():
        if not key.startswith("GGUF."):
            want = {"deepseek.expert_count": 7}.get(key, field.contents())
            assert fields[key].contents() == want, key


@pytest.mark.parametrize("target", ["onnx:int4", "onnx:int4@if"])
def test_kept_blocks_of_a_graph_are_the_folder_s_own(target: str, tmp_path: Path) -> None:
    """By onnx's reader of external data."""
    source = exported(GOLDEN / "base", target)
    package = package_at(source)
    kept = pruned(package, some_of(package.config), tmp_path / "x").kept
    old, new = (
        {t.name: numpy_helper.to_array(t) for t in onnx.load(path / "model.onnx").graph.initializer}
        for path in (source, tmp_path / "x")
    )
    compared = 0
    for name, found in new.items():
        parts = name.split(".")
        if parts[0] != "layers":
            continue
        *routed, shared = kept[int(parts[1])]
        if parts[2] == "forced":
            parts[3] = str(shared)
        elif parts[2] == "experts" and parts[3].isdigit():
            parts[3] = str(routed[int(parts[3])])
        want = old[".".join(parts)]
        if parts[2] == "router" or parts[3] in ("fc1", "fc2"):
            want = want[routed]
        np.testing.assert_array_equal(found, want, name)
        compared += 1
    assert compared > 3 * 10


@pytest.mark.parametrize("target", ["gguf:q4_k_m", "onnx:int4@if"])
def test_an_engine_computes_what_the_package_s_weights_give(target: str, tmp_path: Path) -> None:
    package = package_at(exported(GOLDEN / "base", target))
    path = tmp_path / "x.gguf"
    product = pruned(package, some_of(package.config), path)
    want = np.stack(logits(product.config, product.rows, list(IDS)))
    with FAMILIES[target.partition(":")[0]].exact(path, 1) as opened:
        assert not isinstance(opened, NotCompared)
        model = opened()
        assert_same(want, prefill(model, IDS), TIGHT)
        model.close()


@pytest.mark.parametrize(
    ("name", "said"),
    [("shared_counts", "other biases"), ("dense_middle", "its bytes would be others")],
)
def test_what_a_file_stores_for_its_counts_is_refused(name: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(EmoExportError, match=said):
        package = package_at(exported(checkpoint_of(name), "gguf:q8_0"))
        pruned(package, some_of(package.config), tmp_path / "x.gguf")


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"ARCH.expert_weights_scale": 2.5}, "expert_weights_scale is 2.5"),
        ({"ARCH.expert_gating_func": 2}, "expert_gating_func is 2"),
        ({"ARCH.expert_shared_count": 2}, "experts .15, 3, 2"),
        ({"ARCH.expert_count": None}, "has no key deepseek.expert_count"),
        ({"ARCH.rope.scaling.type": "yarn"}, "'yarn'"),
        ({"ARCH.attention.head_count": 0}, "num_attention_heads is 0"),
    ],
)
def test_a_key_that_is_not_emo_s_is_refused(
    keys: dict[str, Any], said: str, tmp_path: Path
) -> None:
    path = rewrite(exported(GOLDEN / "base", "gguf:f32"), tmp_path / "x.gguf", keys)
    with pytest.raises(EmoExportError, match=said):
        config_told(path)


def test_another_program_s_architecture_is_named(tmp_path: Path) -> None:
    path = rewrite(exported(GOLDEN / "base", "gguf:f32"), tmp_path / "x.gguf", arch="olmoe")
    with pytest.raises(EmoExportError, match="'olmoe'"):
        config_told(path)


def test_a_bias_that_forces_is_an_expert_of_every_token() -> None:
    raw = config_told(exported(checkpoint_of("always_active"), "gguf:q8_0"))
    assert raw["always_active_experts_per_layer"] == [[1, 5], [1, 5]] and FORCE > 1
    told = EmoConfig.from_dict(raw).layers
    assert told == Checkpoint.open(checkpoint_of("always_active")).config.layers


@pytest.mark.parametrize("target", ["gguf:q4_0", "onnx:int4"])
def test_a_scale_that_is_no_number_is_not_copied(target: str, tmp_path: Path) -> None:
    """Its place is told: the tensor, and the row and column at which the block begins."""
    whole = exported(checkpoint_of("base"), target)
    copy = shutil.copyfile if whole.is_file() else shutil.copytree
    made = Path(copy(whole, tmp_path / whole.name))
    package = package_at(made)
    slot = Slot(Role.Q, 0)
    if target == "gguf:q4_0":
        path = made
        (tensor,) = (t for t in GGUFReader(path).tensors if t.name == "blk.0.attn_q.weight")
        place, bad = int(tensor.data_offset), np.float16(np.inf).tobytes()
    else:
        (path,) = made.rglob("model.onnx.data")
        graph = onnx.load(path.with_name("model.onnx"), load_external_data=False).graph
        scales = next(t for t in graph.initializer if "qkv" in t.name and "scales" in t.name)
        offset = next(entry.value for entry in scales.external_data if entry.key == "offset")
        place, bad = int(offset), np.float32(np.nan).tobytes()
    with path.open("r+b") as file:
        file.seek(place)
        file.write(bad)
    kept = some_of(package.config)
    with pytest.raises(EmoExportError, match=rf"{slot.name}: row 0, column 0: (inf|nan) is"):
        pruned(package, kept, tmp_path / "out")
    with pytest.raises(EmoExportError, match=rf"{slot.name}: row 0, column 0: .* as "):
        package.at(slot).rows(0, 1)
