"""Bytes of a decode step, held against sums made by hand from the shapes of tests.kit.synth.

Letters as there: hidden 64, 4 heads of 16, width 32, 512 tokens, 2 layers, 8 experts, 3 a token.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from emo_export.errors import EmoExportError
from emo_export.files.gguf_header import read_gguf
from emo_export.files.onnx_header import read_onnx
from emo_export.files.read_per_token import (
    PerToken,
    check_olmoe,
    gguf_per_token,
    olmoe_bytes,
    olmoe_per_token,
    onnx_per_token,
)
from emo_export.model.config import EmoConfig
from tests.kit.exporting import export_to
from tests.kit.synth import CONFIGS, make_checkpoint, make_config

D, F, V = 64, 32, 512
MATRICES = 4 * D * D  # q, k, v, o of a layer
EXPERT = 3 * D * F
NORMS = 2 * D
BLOCK32, BLOCK64 = 4 / 32, 4 / 64  # bytes of a weight that are its part of a float32 scale
ANGLES = 2 * 8 * 4  # a row of the tables of cos and sin, for heads of 16


def of_gguf(tmp_path: Path, name: str, kind: str) -> PerToken:
    folder = make_checkpoint(tmp_path / "checkpoint", **CONFIGS[name])
    path = export_to(tmp_path / "out", folder, gguf=[kind])[f"gguf:{kind}"]
    return gguf_per_token(path, read_gguf(path))


def of_onnx(tmp_path: Path, name: str, kind: str) -> PerToken:
    folder = make_checkpoint(tmp_path / "checkpoint", **CONFIGS[name])
    path = export_to(tmp_path / "out", folder, onnx=[kind])[f"onnx:{kind}"]
    config = json.loads((path / "config.json").read_text())
    return onnx_per_token(path, read_onnx(path / "model.onnx"), config)


def test_deepseek(tmp_path: Path) -> None:
    # Two of seven routed experts and the shared one; routers have a row for each of the seven.
    layer = MATRICES + NORMS + 7 * D + (2 + 1) * EXPERT
    numbers = 2 * layer + D + V * D + D  # norm, head, one row of the embedding
    found = of_gguf(tmp_path, "mha", "f32")
    assert found.weights == pytest.approx(4 * numbers)
    assert found.cache == 2 * (2 * D) * 2  # layers, key and value, float16
    assert found.at(10) == pytest.approx(4 * numbers + 10 * 512)


def test_deepseek_quantised(tmp_path: Path) -> None:
    # q4_0: 18 bytes for 32 weights of routed experts; q8_0: 34 bytes of everything else.
    layer = (MATRICES + EXPERT) * 34 / 32 + 2 * EXPERT * 18 / 32 + (NORMS + 7 * D) * 4
    ends = (V * D + D) * 34 / 32 + D * 4
    assert of_gguf(tmp_path, "mha", "q4_0").weights == pytest.approx(2 * layer + ends)


def test_deepseek_with_a_dense_layer(tmp_path: Path) -> None:
    dense = MATRICES + NORMS + 3 * D * 96
    sparse = MATRICES + NORMS + 7 * D + 3 * EXPERT
    found = of_gguf(tmp_path, "dense_first", "f32")
    assert found.weights == pytest.approx(4 * (dense + sparse + D + V * D + D))


def test_glm4moe(tmp_path: Path) -> None:
    # All 8 experts are in the stack, of which a token takes 4; the shared expert is one of zeros,
    # and the selection has a bias for each of the 8.
    layer = MATRICES + NORMS + 8 * D + 8 + (4 + 1) * EXPERT
    found = of_gguf(tmp_path, "always_active", "f32")
    assert found.weights == pytest.approx(4 * (2 * layer + D + V * D + D))


def test_grouped_heads_have_a_smaller_cache(tmp_path: Path) -> None:
    assert of_gguf(tmp_path, "gqa", "f32").cache == 2 * (2 * 2 * 16) * 2


@pytest.mark.parametrize("kind", ["f32", "f32@if", "f32@standard"])
def test_onnx_of_each_graph(kind: str, tmp_path: Path) -> None:
    layer = MATRICES + NORMS + 7 * D + (2 + 1) * EXPERT
    found = of_onnx(tmp_path, "mha", kind)
    assert found.weights == pytest.approx(4 * (2 * layer + D + V * D + D) + ANGLES)
    assert found.cache == 2 * (2 * D) * 4  # float32


@pytest.mark.parametrize("kind", ["int4", "int4@if"])
def test_onnx_int4(kind: str, tmp_path: Path) -> None:
    # Blocks of 64, but of 32 for down's rows, and for all of an operator that has one length.
    up, down = (BLOCK32, BLOCK32) if kind == "int4" else (BLOCK64, BLOCK32)
    routed = D * F * (2 * (0.5 + up) + 0.5 + down)
    shared = D * F * (2 * (1 + BLOCK64) + 1 + BLOCK32)
    layer = MATRICES * (1 + BLOCK64) + shared + 2 * routed + (NORMS + 7 * D) * 4
    ends = (V * D + D) * (1 + BLOCK64) + D * 4 + ANGLES
    assert of_onnx(tmp_path, "mha", kind).weights == pytest.approx(2 * layer + ends)


def test_onnx_int8_rows(tmp_path: Path) -> None:
    # One float32 scale for each row; fc1 has 2F rows, fc2 has D.
    expert = EXPERT + (2 * F + D) * 4
    layer = MATRICES + 4 * D * 4 + 3 * expert + (NORMS + 7 * D) * 4
    ends = V * (D + 4) + (D + 4) + D * 4 + ANGLES
    assert of_onnx(tmp_path, "mha", "int8@standard").weights == pytest.approx(2 * layer + ends)


@pytest.mark.parametrize("kind", ["f32", "f32@if"])
def test_onnx_with_always_active_experts(kind: str, tmp_path: Path) -> None:
    # Two forced experts are read whole, and 2 of the other 6.
    layer = MATRICES + NORMS + 8 * D + 4 * EXPERT
    found = of_onnx(tmp_path, "always_active", kind)
    assert found.weights == pytest.approx(4 * (2 * layer + D + V * D + D) + ANGLES)


def test_onnx_with_a_tied_head_and_a_dense_layer(tmp_path: Path) -> None:
    layer = MATRICES + NORMS + 7 * D + 3 * EXPERT
    found = of_onnx(tmp_path / "tied", "tied", "f32")
    assert found.weights == pytest.approx(4 * (2 * layer + D + V * D + D) + ANGLES)
    dense = MATRICES + NORMS + 3 * D * 96
    found = of_onnx(tmp_path / "dense", "dense_first", "f32")
    assert found.weights == pytest.approx(4 * (dense + layer + D + V * D + D) + ANGLES)


def test_olmoe() -> None:
    config = EmoConfig.from_dict(make_config())
    layer = MATRICES + 2 * D + NORMS + 8 * D  # the norms of q and k besides
    assert olmoe_bytes(config) == 2 * (2 * (layer + 8 * EXPERT) + D + 2 * V * D)
    assert olmoe_per_token(config) == PerToken(
        2 * (2 * (layer + 3 * EXPERT) + D + V * D + D), 2 * (2 * D) * 2
    )


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("dense_first", "[0, 8] experts"),
        ("head_dim", "4 heads of 24"),
        ("attention_bias", "attention_bias"),
    ],
)
def test_shapes_that_no_olmoe_has(name: str, said: str) -> None:
    config = EmoConfig.from_dict(make_config(**CONFIGS[name]))
    with pytest.raises(EmoExportError, match=said.replace("[", r"\[")):
        check_olmoe(config, Path("here"))


def test_what_is_not_ours_is_refused(small_exports: dict[str, Path]) -> None:
    path = small_exports["gguf:f32"]
    file = read_gguf(path)
    other = replace(file, keys={**file.keys, "general.architecture": "llama"})
    with pytest.raises(EmoExportError, match="not known for the architecture llama"):
        gguf_per_token(path, other)
    many = replace(file, keys={**file.keys, "deepseek.expert_used_count": 9})
    with pytest.raises(EmoExportError, match="takes 9 experts"):
        gguf_per_token(path, many)
    folder = small_exports["onnx:int4"]
    graph = read_onnx(folder / "model.onnx")
    config = json.loads((folder / "config.json").read_text())
    with pytest.raises(EmoExportError, match="num_experts_per_tok is None"):
        onnx_per_token(folder, graph, {**config, "num_experts_per_tok": None})
    renamed = [replace(t, name="w") if "qkv.weight" in t.name else t for t in graph.initializers]
    with pytest.raises(EmoExportError, match=r"'w' of .* is not one of a graph that export makes"):
        onnx_per_token(folder, replace(graph, initializers=renamed), config)
