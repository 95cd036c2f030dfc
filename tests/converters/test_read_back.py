"""The weights that a file holds, read back, are those that were packed into it."""

from __future__ import annotations

import shutil
from pathlib import Path

import gguf
import numpy as np
import onnx
import pytest

from emo_export.converters.gguf.read_back import GgufWeights
from emo_export.converters.onnx.read_back import OnnxWeights
from emo_export.errors import EmoExportError
from emo_export.model.names import Role, row_spans, slots
from emo_export.reference.passes import Rows
from tests.kit.exporting import (
    case,
    dequantised_source,
    exported,
    open_product,
    scheme_of,
)
from tests.kit.synth import CONFIGS, FEATURES, LAYOUTS, make_checkpoint
from tests.kit.tiers import slow_beyond

GGUF = ("mha", "gqa", "tied", "odd_48_20", "dense_first", "no_shared_norm_topk", "always_active")
GGUF += ("dense_middle", "dense_middle_wide", "always_active_counts", "k_equals_e", "head_dim")
UNTOLD = (Role.ROUTER,)  # rows that change nothing are not in a file


def rows_of(folder: Path, target: str) -> Rows:
    product = open_product(folder)
    path = exported(folder, target)
    if target.startswith("gguf"):
        return GgufWeights(path, product.config).rows
    return OnnxWeights(path, product.config, scheme_of(product, target)).rows


def check(folder: Path, target: str) -> None:
    """Every matrix, every piece of it, and rows out of the middle."""
    product = open_product(folder)
    want, found = dequantised_source(product, scheme_of(product, target)), rows_of(folder, target)
    for slot in slots(product.config):
        for start, stop in row_spans(slot, product.config):
            whole = want(slot, start, stop)
            if slot.role in UNTOLD:
                told = found(slot, start, stop)
                kept = np.abs(told).max(1) > 0
                assert kept.any() or target.startswith("gguf")
                np.testing.assert_array_equal(told[kept], whole[kept])
                continue
            np.testing.assert_array_equal(found(slot, start, stop), whole, slot.name)
            middle = (start + stop) // 2
            np.testing.assert_array_equal(found(slot, middle, stop), whole[middle - start :])


@pytest.mark.parametrize("target", ["gguf:f32", "gguf:q8_0", "gguf:q4_0"])
@pytest.mark.parametrize("name", slow_beyond(FEATURES, GGUF))
def test_gguf(name: str, target: str) -> None:
    check(case(name).folder, target)


BOTH = [(name, "int8@standard") for name in CONFIGS]
BOTH += [(name, target) for name in LAYOUTS for target in ("f32", "f32@standard")]
BOTH += [(name, t) for name in CONFIGS if "odd_" not in name for t in ("int4", "int8@if")]


@pytest.mark.parametrize(
    ("name", "target"),
    slow_beyond([one for one in BOTH if one[0] in FEATURES and "standard" not in one[1]], BOTH),
)
def test_onnx(name: str, target: str) -> None:
    check(case(name).folder, f"onnx:{target}")


def test_a_file_of_another_model_is_refused(tmp_path: Path) -> None:
    other = open_product(make_checkpoint(tmp_path / "other", intermediate_size=96))
    mine = case("mha").folder
    with pytest.raises(EmoExportError, match=r"ffn_gate_exps.weight is of shape .* this model has"):
        GgufWeights(exported(mine, "gguf:q8_0"), other.config)
    with pytest.raises(EmoExportError, match=r"initializer layers.*weight is of shape"):
        OnnxWeights(exported(mine, "onnx:int4"), other.config, scheme_of(other, "onnx:int4"))


def test_a_data_file_that_ends_early_is_refused(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(exported(case("mha").folder, "onnx:f32"), tmp_path / "x"))
    product = open_product(case("mha").folder)
    data = folder / "model.onnx.data"
    data.write_bytes(data.read_bytes()[:4096])
    with pytest.raises(EmoExportError, match=r"of 'model\.onnx\.data', which has 4096"):
        OnnxWeights(folder, product.config, scheme_of(product, "onnx:f32"))


@pytest.mark.parametrize("place", ["../model.onnx.data", "other.data"])
def test_data_in_another_file_is_never_read(place: str, tmp_path: Path) -> None:
    mine = case("mha").folder
    folder = Path(shutil.copytree(exported(mine, "onnx:f32"), tmp_path / "x"))
    shutil.copy(folder / "model.onnx.data", folder / place)
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            entry.value = place if entry.key == "location" else entry.value
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    product = open_product(mine)
    said = f"lies in '{place}'; a graph that export makes|in '{place}', outside of its folder"
    with pytest.raises(EmoExportError, match=said):
        OnnxWeights(folder, product.config, scheme_of(product, "onnx:f32"))


def test_a_tensor_that_the_model_has_not_is_refused(tmp_path: Path) -> None:
    """Such as the norms of another model's q, which an engine might apply."""
    mine = case("mha").folder
    source, path = gguf.GGUFReader(exported(mine, "gguf:f32")), tmp_path / "x.gguf"
    writer = gguf.GGUFWriter(path, "deepseek")
    for tensor in source.tensors:
        writer.add_tensor(tensor.name, np.array(tensor.data))
    writer.add_tensor("blk.0.attn_q_norm.weight", np.ones(16, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(EmoExportError, match=r"has not, such as blk\.0\.attn_q_norm\.weight"):
        GgufWeights(path, open_product(mine).config)
