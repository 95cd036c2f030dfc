"""A tiny decoder as a real ONNX folder, made by onnx.helper, and what it computes in numpy.

Each layer is causal attention without positions added to the stream: enough to show a wrong cache.
Two graphs of the same weights: standard operators, or GroupQueryAttention with a shared KV buffer.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

F32 = npt.NDArray[np.float32]
VOCAB, HEADS, HEAD, LAYERS, CONTEXT = 24, 2, 8, 2, 40
WIDTH = HEADS * HEAD
EOS = 23


def weights() -> dict[str, F32]:
    rng = np.random.default_rng(7)
    shapes = {"embed": (VOCAB, WIDTH), "head": (WIDTH, VOCAB)}
    shapes |= {f"{part}{i}": (WIDTH, WIDTH) for i in range(LAYERS) for part in "qkv"}
    return {
        name: (0.4 * rng.standard_normal(shape)).astype(np.float32)
        for name, shape in shapes.items()
    }


def expected(ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Logits (T, V) of ids (T,), in float64."""
    w = {name: value.astype(np.float64) for name, value in weights().items()}
    x = w["embed"][ids]
    for i in range(LAYERS):
        q, k, v = ((x @ w[f"{part}{i}"]).reshape(-1, HEADS, HEAD).swapaxes(0, 1) for part in "qkv")
        scores = q @ k.swapaxes(1, 2) / np.sqrt(HEAD)
        scores = np.where(np.tri(len(ids), dtype=bool), scores, -np.inf)
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = (scores / scores.sum(-1, keepdims=True)) @ v
        x = x + mixed.swapaxes(0, 1).reshape(-1, WIDTH)
    return x @ w["head"]


def write_folder(folder: Path, *, fused: bool = False) -> onnx.ModelProto:
    """Write the folder as our exporter lays it out; answer the model, weights inside it."""
    folder.mkdir(parents=True, exist_ok=True)
    model = _model(fused)
    plain = onnx.ModelProto()
    plain.CopyFrom(model)
    onnx.save(
        model,
        folder / "model.onnx",
        save_as_external_data=True,
        location="model.onnx.data",
        size_threshold=256,
    )
    config = {
        "vocab_size": VOCAB,
        "num_hidden_layers": LAYERS,
        "num_key_value_heads": HEADS,
        "head_dim": HEAD,
        "max_position_embeddings": CONTEXT,
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    needs = {"onnxruntime_min": "1.20", "share_kv_buffer": fused}
    (folder / "emo_export.json").write_text(json.dumps(needs), encoding="utf-8")
    return plain


def _model(fused: bool) -> onnx.ModelProto:
    nodes = [
        helper.make_node("Gather", ["embed", "input_ids"], ["x0"]),
        *(_fused_mask() if fused else _mask()),
    ]
    for i in range(LAYERS):
        nodes += _fused_layer(i) if fused else _layer(i)
    nodes.append(helper.make_node("MatMul", [f"x{LAYERS}", "head"], ["logits"]))
    constants: dict[str, npt.NDArray[Any]] = {
        "heads": np.array([0, 0, HEADS, HEAD], np.int64),
        "flat": np.array([0, 0, WIDTH], np.int64),
        "scale": np.array(HEAD**-0.5, np.float32),
        "hidden": np.array(-1e9, np.float32),
        "zero": np.array(0, np.int64),
        "one": np.array(1, np.int64),
        "axis1": np.array([1], np.int64),
        "last": np.array([-1], np.int64),
    }
    constants.update(weights())
    initializers = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "tiny", _inputs(), _outputs(), initializers)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)


def _cache(prefix: str, length: str) -> list[onnx.ValueInfoProto]:
    shape: list[str | int | None] = ["batch", HEADS, length, HEAD]
    return [
        helper.make_tensor_value_info(f"{prefix}.{i}.{part}", TensorProto.FLOAT, shape)
        for i in range(LAYERS)
        for part in ("key", "value")
    ]


def _inputs() -> list[onnx.ValueInfoProto]:
    ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "tokens"])
    mask = helper.make_tensor_value_info("attention_mask", TensorProto.INT64, ["batch", "total"])
    return [ids, mask, *_cache("past_key_values", "past")]


def _outputs() -> list[onnx.ValueInfoProto]:
    shape: list[str | int | None] = ["batch", "tokens", VOCAB]
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, shape)
    return [logits, *_cache("present", "present")]


def _mask() -> list[onnx.NodeProto]:
    """Bias (T, P+T): 0 where a query may look, -1e9 where not."""
    return [
        helper.make_node("Shape", ["attention_mask"], ["mask_shape"]),
        helper.make_node("Gather", ["mask_shape", "one"], ["total"]),
        helper.make_node("Shape", ["input_ids"], ["ids_shape"]),
        helper.make_node("Gather", ["ids_shape", "one"], ["tokens"]),
        helper.make_node("Sub", ["total", "tokens"], ["past"]),
        helper.make_node("Range", ["past", "total", "one"], ["rows"]),
        helper.make_node("Unsqueeze", ["rows", "last"], ["rows_column"]),
        helper.make_node("Range", ["zero", "total", "one"], ["columns"]),
        helper.make_node("Greater", ["columns", "rows_column"], ["later"]),
        helper.make_node("Cast", ["later"], ["later_float"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["later_float", "hidden"], ["bias"]),
    ]


def _projections(i: int) -> list[onnx.NodeProto]:
    return [helper.make_node("MatMul", [f"x{i}", f"{p}{i}"], [f"{p}flat{i}"]) for p in "qkv"]


def _layer(i: int) -> list[onnx.NodeProto]:
    make = helper.make_node
    nodes = _projections(i)
    for part in "qkv":
        nodes.append(make("Reshape", [f"{part}flat{i}", "heads"], [f"{part}split{i}"]))
        nodes.append(make("Transpose", [f"{part}split{i}"], [f"{part}head{i}"], perm=[0, 2, 1, 3]))
    for part, word in (("k", "key"), ("v", "value")):
        past, present = f"past_key_values.{i}.{word}", f"present.{i}.{word}"
        nodes.append(make("Concat", [past, f"{part}head{i}"], [present], axis=2))
    return [
        *nodes,
        make("Transpose", [f"present.{i}.key"], [f"kt{i}"], perm=[0, 1, 3, 2]),
        make("MatMul", [f"qhead{i}", f"kt{i}"], [f"raw{i}"]),
        make("Mul", [f"raw{i}", "scale"], [f"scaled{i}"]),
        make("Add", [f"scaled{i}", "bias"], [f"scores{i}"]),
        make("Softmax", [f"scores{i}"], [f"soft{i}"], axis=-1),
        make("MatMul", [f"soft{i}", f"present.{i}.value"], [f"mixed{i}"]),
        make("Transpose", [f"mixed{i}"], [f"back{i}"], perm=[0, 2, 1, 3]),
        make("Reshape", [f"back{i}", "flat"], [f"attention{i}"]),
        make("Add", [f"x{i}", f"attention{i}"], [f"x{i + 1}"]),
    ]


def _fused_mask() -> list[onnx.NodeProto]:
    return [
        helper.make_node("ReduceSum", ["attention_mask", "axis1"], ["sums"], keepdims=0),
        helper.make_node("Sub", ["sums", "one"], ["sums_less"]),
        helper.make_node("Cast", ["sums_less"], ["seqlens_k"], to=TensorProto.INT32),
        helper.make_node("Shape", ["attention_mask"], ["mask_shape"]),
        helper.make_node("Gather", ["mask_shape", "one"], ["total64"]),
        helper.make_node("Cast", ["total64"], ["total"], to=TensorProto.INT32),
    ]


def _fused_layer(i: int) -> list[onnx.NodeProto]:
    flat = [f"{part}flat{i}" for part in "qkv"]
    past = [f"past_key_values.{i}.{word}" for word in ("key", "value")]
    present = [f"present.{i}.{word}" for word in ("key", "value")]
    attention = helper.make_node(
        "GroupQueryAttention",
        [*flat, *past, "seqlens_k", "total"],
        [f"attention{i}", *present],
        domain="com.microsoft",
        num_heads=HEADS,
        kv_num_heads=HEADS,
    )
    add = helper.make_node("Add", [f"x{i}", f"attention{i}"], [f"x{i + 1}"])
    return [*_projections(i), attention, add]
