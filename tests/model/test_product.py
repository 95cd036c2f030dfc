"""A product of a checkpoint: its config, its numbering, and rows from the right places."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from emo_export.errors import EmoExportError
from emo_export.model.checkpoint import Checkpoint
from emo_export.model.config import EmoConfig
from emo_export.model.names import VECTORS, row_spans, slots
from emo_export.model.product import Product
from emo_export.reference.passes import logits
from tests.kit.exporting import case
from tests.kit.oracle import oracle_logits
from tests.kit.paths import GOLDEN


def kept_of(config: EmoConfig, drop: int) -> list[list[int]]:
    """All but `drop` routed experts of each layer, and not always the first ones."""
    kept = []
    for index, layer in enumerate(config.layers):
        gone = set(layer.routed[index % 2 :][:drop]) if layer.routed else set()
        kept.append([expert for expert in range(layer.num_experts) if expert not in gone])
    return kept


@pytest.mark.parametrize("name", ["mha", "tied", "dense_first", "always_active_per_layer"])
def test_keeping_all_is_the_identity(name: str) -> None:
    source = Checkpoint.open(case(name).folder)
    everything = [list(range(layer.num_experts)) for layer in source.config.layers]
    product = Product.keeping(source, everything)
    assert product == Product.whole(source)
    assert product.config == source.config and product.raw == source.raw
    assert product.nbytes == source.nbytes
    for slot in slots(product.config):
        assert product.origin(slot) == slot
        for start, stop in row_spans(slot, product.config):
            want = source.at(slot).rows(start, stop)
            np.testing.assert_array_equal(product.rows(slot, start, stop), want)


PRUNED = ["mha", "gqa", "no_shared_norm_topk", "two_shared", "always_active", "per_layer_counts"]
PRUNED += ["always_active_per_layer", "dense_first", "shared_counts"]


@pytest.mark.parametrize("name", PRUNED)
def test_a_product_computes_what_its_checkpoint_would(name: str, tmp_path: Path) -> None:
    """The oracle knows nothing of products: it reads the pruned weights from a file."""
    made = case(name)
    source = Checkpoint.open(made.folder)
    product = Product.keeping(source, kept_of(source.config, 1))
    tensors = {
        slot.name: np.concatenate([product.rows(slot, *s) for s in row_spans(slot, product.config)])
        for slot in slots(product.config)
    }
    tensors |= {s.name: tensors[s.name][0] for s in slots(product.config) if s.role in VECTORS}
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(product.raw), "utf-8")
    assert Checkpoint.open(tmp_path).config == product.config
    want, _ = oracle_logits(tmp_path, made.ids)
    found = np.stack(logits(product.config, product.rows, list(made.ids)))
    assert np.abs(found - want).max() <= 2e-5
    assert product.nbytes < source.nbytes


def test_the_config_is_that_of_the_published_pruning() -> None:
    metadata = json.loads((GOLDEN / "pruned" / "pruning_metadata.json").read_text("utf-8"))
    source = Checkpoint.open(GOLDEN / "base")
    product = Product.keeping(source, metadata["experts_kept_per_layer"])
    assert product.config == Checkpoint.open(GOLDEN / "pruned").config


def test_what_cannot_be_kept_is_refused() -> None:
    source = Checkpoint.open(case("mha").folder)
    everything = [list(range(layer.num_experts)) for layer in source.config.layers]
    with pytest.raises(EmoExportError, match=r"layer 0: \[7\] must stay"):
        Product.keeping(source, [everything[0][:-1], *everything[1:]])
    for wrong in ([2, 2, 7], [0, 8], [-1, 7]):
        with pytest.raises(EmoExportError, match=r"layer 1: expected \d different numbers below 8"):
            Product.keeping(source, [everything[0], wrong, *everything[2:]])
    with pytest.raises(EmoExportError, match="0 experts cannot be kept in layer 1"):
        Product.keeping(source, [everything[0], [], *everything[2:]])
    with pytest.raises(EmoExportError, match="counts of experts"):
        Product.keeping(source, everything[:-1])
