"""The whole files that the corpus began with, written by other libraries where there are some.

python -m tests.fuzz.seeds
"""

from __future__ import annotations

import io
import json
import struct
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from onnx import TensorProto, helper, numpy_helper

from emo_export.converters.gguf.imatrix import write_imatrix
from emo_export.converters.gguf.layout import Layout
from emo_export.converters.gguf.scheme import gguf_scheme
from emo_export.model.config import EmoConfig
from emo_export.model.importance import ImportanceMatrix
from emo_export.model.names import VECTORS, Role, shape_of, slots
from tests.fuzz.readers import CONFIG, CORPUS, GOLDEN_NAMES, READERS, RESUME_NAMES, npz_of

CONFIG_READ = EmoConfig.from_dict(json.loads(CONFIG), "config.json")


def safetensors_file() -> bytes:
    """Two tensors, one of bfloat16."""
    header = {
        "__metadata__": {"format": "pt"},
        "a.weight": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
        "b": {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]},
    }
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(32)


def gguf_file(tokenizer: bool, tensors: bool) -> bytes:
    """A model of CONFIG, as gguf-py writes it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.gguf"
        writer = gguf.GGUFWriter(path, "deepseek")
        writer.add_block_count(1)
        writer.add_expert_count(2)
        writer.add_context_length(16)
        writer.add_file_type(0)
        if tokenizer:
            writer.add_tokenizer_model("gpt2")
            writer.add_tokenizer_pre("dbrx")
            writer.add_token_list([f"t{i}" for i in range(260)])
            writer.add_token_types([1] * 260)
            writer.add_eos_token_id(7)
        layout = Layout(CONFIG_READ, "deepseek", gguf_scheme("f32", CONFIG_READ, arch="deepseek"))
        for name, shape, _ in layout.declared if tensors else []:
            writer.add_tensor(name, np.ones(shape, np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path.read_bytes()


def imatrix_file() -> bytes:
    """An importance matrix of CONFIG."""
    matrix = ImportanceMatrix("a.txt", 1000)
    for slot in slots(CONFIG_READ):
        if slot.role not in VECTORS | {Role.EMBED, Role.ROUTER}:
            matrix.sums[slot] = np.ones(shape_of(slot, CONFIG_READ)[1], np.float32)
            matrix.counts[slot] = 3
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "i.gguf"
        write_imatrix(path, matrix, CONFIG_READ, "deepseek")
        return path.read_bytes()


def onnx_file() -> bytes:
    """A graph with external data, an `If`, metadata and a grouped attention."""
    outside = TensorProto(name="w", data_type=1, dims=[4, 4], data_location=1)
    for key, value in {"location": "model.onnx.data", "offset": "64", "length": "64"}.items():
        outside.external_data.add(key=key, value=value)
    inside = numpy_helper.from_array(np.arange(3, dtype=np.int64), "c")
    branch = helper.make_graph(
        [helper.make_node("Identity", ["w"], ["y"])],
        "branch",
        [],
        [helper.make_tensor_value_info("y", 1, [4, 4])],
    )
    nodes = [
        helper.make_node("If", ["b"], ["x"], then_branch=branch, else_branch=branch),
        helper.make_node("Constant", [], ["k"], value=inside),
        helper.make_node(
            "GroupQueryAttention", ["x", "x", "x"], ["z"], domain="com.microsoft", num_heads=2
        ),
    ]
    past = helper.make_tensor_value_info("past_key_values.0.key", 1, ["b", 2, "t", 4])
    graph = helper.make_graph(
        nodes, "g", [past], [helper.make_tensor_value_info("z", 1, [4, 4])], [outside, inside]
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10, producer_name="p")
    helper.set_model_props(model, {"emo_export.graph": "qmoe"})
    return bytes(model.SerializeToString())


def member(names: list[str], name: str, array: Any, packed: int) -> bytes:
    """One array in the form that `npz_of` takes."""
    out = io.BytesIO()
    np.save(out, array)
    content = out.getvalue()
    return (
        bytes([names.index(f"{name}.npy")])
        + struct.pack(">H", len(content))
        + bytes([packed])
        + content
    )


def golden_members() -> bytes:
    """All arrays of a small golden.npz."""
    ids = np.arange(3, dtype=np.int64)
    arrays: dict[str, Any] = {
        "input_ids": ids[None],
        "heldout_ids": ids[None],
        "heldout_source": np.array("text"),
        "text": np.frombuffer(b"abc", np.uint8),
        "text_ids": ids,
        "stop_ids": ids[:1],
        "greedy_prompt": ids,
        "greedy": ids,
        "domains": np.array(["c"]),
        "usage": np.zeros((1, 1, 2), np.int64),
        "original/logits": np.zeros((1, 3, 8), np.float32),
        "original/margin": np.ones((1, 3), np.float32),
        "original/heldout_nll": np.ones((1, 3), np.float32),
        "original/experts": ids[:2],
    }
    return b"".join(member(GOLDEN_NAMES, *pair, 1) for pair in arrays.items())


def resume_members() -> bytes:
    """A saved state."""
    arrays = {
        "blocks": np.array(1),
        "files": np.array(json.dumps(["gguf.gguf"])),
        "written/0/0/0": np.zeros(4, np.uint8),
    }
    return b"".join(member(RESUME_NAMES, *pair, 128) for pair in arrays.items())


MANIFEST: Mapping[str, Any] = {
    "version": 1,
    "source": {"kept": [[0, 1]], "scales": [1.0]},
    "tools": {"emo-export": "0.1.0"},
    "targets": {
        "gguf:q4_0": {
            "path": "m.gguf",
            "recipe": {"expert": "q4_0", "head": ["q8_0", "q4_0"]},
            "fallbacks": {"a": ["q4_k", "q4_0"]},
            "arch": "deepseek",
            "context": 16,
            "importance": {"file": "imatrix.gguf", "source": "a.txt", "tokens": 3},
        }
    },
    "files": [{"path": "m.gguf", "bytes": 3, "sha256": "00"}],
}
TOKENIZER: Mapping[str, Any] = {
    "version": "1.0",
    "truncation": None,
    "added_tokens": [
        {"id": 259, "content": "<|endoftext|>", "single_word": False, "lstrip": False,
         "rstrip": False, "normalized": False, "special": True}
    ],
    "normalizer": {"type": "NFC"},
    "pre_tokenizer": {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": r"\p{L}+|\p{N}{1,3}|\s+(?!\S)|\s+"},
             "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
             "use_regex": False},
        ],
    },
    "post_processor": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False},
    "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True},
    "model": {"type": "BPE", "dropout": None, "unk_token": None, "fuse_unk": False,
              "byte_fallback": False, "ignore_merges": False,
              "vocab": {"a": 0, "b": 1, "ab": 2, "\u0120": 3}, "merges": [["a", "b"]]},
}  # fmt: skip
SWEEP = """checkpoint = "."
keep = [8, "50%", "all"]
methods = ["router"]
targets = ["gguf:q4_k_m", "onnx:int4"]
judge = "own"
[domains.c]
calibration = ["a.txt"]
heldout = ["a.txt"]
[options]
calibration_tokens = 8192
arch = "deepseek"
"""


def seeds() -> Iterator[tuple[str, bytes]]:
    """Reader and content of each."""
    yield "json", json.dumps(MANIFEST).encode()
    yield "safetensors", safetensors_file()
    yield "index", json.dumps({"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}).encode()
    yield "config", CONFIG
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
               "high_freq_factor": 4.0, "original_max_position_embeddings": 64}  # fmt: skip
    yield (
        "config",
        json.dumps(
            {
                **json.loads(CONFIG),
                "rope_scaling": scaling,
                "num_experts_per_layer": [2],
                "always_active_experts_per_layer": [[0]],
                "dense_intermediate_size": 4,
            }
        ).encode(),
    )
    yield "gguf", gguf_file(tokenizer=True, tensors=False)
    yield "gguf", gguf_file(tokenizer=False, tensors=True)
    yield "gguf-weights", gguf_file(tokenizer=False, tensors=True)
    yield "imatrix", imatrix_file()
    yield "onnx", onnx_file()
    yield "onnx-bytes", onnx_file()
    yield "golden", golden_members()
    yield "zip", npz_of(golden_members())
    yield "resume", resume_members()
    yield "manifest", json.dumps(MANIFEST).encode()
    yield "domains", b'{"version": 1, "domains": ["c", "python"]}'
    yield (
        "records",
        json.dumps(
            {"onnxruntime_min": "1.31", "graph": "qmoe", "type": "int4", "share_kv_buffer": True}
        ).encode(),
    )
    yield "records", json.dumps({"gguf:q4_0": {"types": {"expert": ["q4_0"]}}}).encode()
    yield "records", json.dumps({"target": "gguf:q4_0", "engine": {}, "rows": []}).encode()
    yield (
        "templates",
        json.dumps({"chat_template": [{"name": "default", "template": "{{x}}"}]}).encode(),
    )
    yield "tokenizer", json.dumps(TOKENIZER).encode()
    yield "sweep", SWEEP.encode()
    yield "text", '{"text": "a\\nb"}\n\n{"text": null}\n{"text": "\u00e9"}\n'.encode()


def main() -> None:
    """Write them."""
    for number, (name, content) in enumerate(seeds()):
        assert len(content) <= READERS[name].longest, (name, len(content))
        folder = CORPUS / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"seed-{number}").write_bytes(content)


if __name__ == "__main__":
    main()
