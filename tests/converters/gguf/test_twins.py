"""The float32 twin of a quantised GGUF, in which llama.cpp computes with float activations."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader, LlamaFileType
from gguf.quants import dequantize

from emo_export.converters.gguf.twin import write_float_twin
from emo_export.runtimes.llama.model import LlamaCpp
from tests.kit.exporting import (
    TIGHT,
    assert_same,
    case,
    dequantised_logits,
    export_to,
    exported,
    kl,
    prefill,
    steps,
)
from tests.kit.paths import NANO
from tests.kit.synth import make_checkpoint


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A file of the trained model with tensors of Q4_0, Q8_0 and F32, and its twin."""
    source = exported(NANO, "gguf:q4_0")
    twin = tmp_path_factory.mktemp("twin") / source.name
    write_float_twin(source, twin)
    return [source, twin]


def test_llama_cpp_on_the_twin_is_the_dequantised_reference(pair: list[Path]) -> None:
    ids = np.load(NANO / "golden.npz")["input_ids"][:3]
    want = dequantised_logits(NANO, "gguf:q4_0", ids)
    model = LlamaCpp(pair[1], threads=1, parity=True)
    for found in (prefill(model, ids), steps(model, ids)):
        assert_same(want, found, TIGHT)
    model.close()
    # The file itself is further off: its activations are rounded too.
    model = LlamaCpp(pair[0], threads=1, parity=True)
    assert kl(want, prefill(model, ids)).mean() > 1e-6
    model.close()


@pytest.mark.slow
def test_tensors_are_float32_of_the_same_values(pair: list[Path]) -> None:
    source, twin = (GGUFReader(path) for path in pair)
    assert [t.name for t in source.tensors] == [t.name for t in twin.tensors]
    for before, after in zip(source.tensors, twin.tensors, strict=True):
        assert after.tensor_type == GGMLQuantizationType.F32
        assert after.shape.tolist() == before.shape.tolist()
        np.testing.assert_array_equal(after.data, dequantize(before.data, before.tensor_type))


def test_every_key_is_kept(pair: list[Path]) -> None:
    source, twin = (
        {k: f for k, f in GGUFReader(path).fields.items() if not k.startswith("GGUF.")}
        for path in pair
    )
    assert set(source) == set(twin)
    for key, field in source.items():
        assert twin[key].types == field.types, key
        if key != "general.file_type":
            assert twin[key].contents() == field.contents(), key
    assert twin["general.file_type"].contents() == LlamaFileType.ALL_F32
    assert len(twin["tokenizer.ggml.merges"].contents()) > 1000


@pytest.mark.parametrize("name", ["odd_48_20", "odd_36_32", "no_shared", "dense_first", "tied"])
def test_twins_of_mixed_types(name: str, tmp_path: Path) -> None:
    made = case(name)
    write_float_twin(exported(made.folder, "gguf:q4_0"), tmp_path / "twin.gguf")
    want = dequantised_logits(made.folder, "gguf:q4_0", made.ids)
    model = LlamaCpp(tmp_path / "twin.gguf", threads=1, parity=True)
    assert_same(want, prefill(model, made.ids), TIGHT)
    model.close()


@pytest.mark.parametrize("type_name", ["f32", "f16", "bf16"])
def test_twins_of_other_types_and_without_tokenizer(type_name: str, tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model", tokenizer=False)
    source = export_to(tmp_path, folder, gguf=[type_name])[f"gguf:{type_name}"]
    write_float_twin(source, tmp_path / "twin.gguf")
    ids = case("mha").ids
    want = dequantised_logits(folder, f"gguf:{type_name}", ids)
    model = LlamaCpp(tmp_path / "twin.gguf", threads=1, parity=True)
    assert_same(want, prefill(model, ids), TIGHT)
    model.close()
