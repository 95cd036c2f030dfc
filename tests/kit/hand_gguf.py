"""A GGUF of an EMO checkpoint, written by hand after docs/emo.md: an independent peer.

It shares no code with emo_export.converters (or with emo_export at all), so that a mistake there
does not appear here. It holds everything in memory: for the small checkpoints of the tests only.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
from gguf.constants import GGMLQuantizationType as Type

F32 = npt.NDArray[np.float32]
EXPERT_PARTS = ("gate", "up", "down")


def read_weights(folder: Path) -> dict[str, F32]:
    """Every tensor of the folder's safetensors files as float32 (F32, F16 and BF16 are read)."""
    weights: dict[str, F32] = {}
    for path in sorted(folder.glob("*.safetensors")):
        data = path.read_bytes()
        size = int.from_bytes(data[:8], "little")
        body = data[8 + size :]
        for name, entry in json.loads(data[8 : 8 + size]).items():
            if name == "__metadata__":
                continue
            begin, end = entry["data_offsets"]
            flat = _to_float32(body[begin:end], entry["dtype"])
            weights[name] = flat.reshape(entry["shape"])
    return weights


def _to_float32(raw: bytes, dtype: str) -> F32:
    if dtype == "BF16":
        return (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(raw, {"F32": "<f4", "F16": "<f2"}[dtype]).astype(np.float32)


def requantize(weights: dict[str, F32], kind: Type) -> dict[str, F32]:
    """The weights that an engine reads from a file of `kind`: matrices there and back."""
    return {
        name: gguf.quants.dequantize(gguf.quants.quantize(value, kind), kind)
        if _is_quantized(name, value)
        else value
        for name, value in weights.items()
    }


def _is_quantized(name: str, value: F32) -> bool:
    return value.ndim == 2 and not name.endswith("mlp.gate.weight")


def write_gguf(
    folder: Path, path: Path, kind: Type = Type.F32, *, arch: str = "deepseek"
) -> dict[str, F32]:
    """Write the checkpoint in `folder` to `path`; answer its float32 weights.

    Matrices are of type `kind`; norms and routers stay float32.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    weights = read_weights(folder)
    writer = gguf.GGUFWriter(path, arch)
    _add_shape(writer, config)
    _add_tokenizer(writer, folder, config)
    for name, value in _tensors(weights, config).items():
        if value.ndim == 1 or name.endswith("ffn_gate_inp.weight"):
            writer.add_tensor(name, value)
        else:
            writer.add_tensor(name, gguf.quants.quantize(value, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return weights


def _experts(config: dict[str, Any]) -> list[int]:
    layers = config["num_hidden_layers"]
    counts: list[int] = config.get("num_experts_per_layer") or [config["num_experts"]] * layers
    return counts


def _add_shape(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    head_size = config["hidden_size"] // config["num_attention_heads"]
    counts = _experts(config)
    dense = counts.index(next(c for c in counts if c))
    if config["num_shared_experts"] != 1 or len(set(counts[dense:])) != 1:
        raise NotImplementedError("this hand-made mapping knows one shared expert, even counts")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["dense_intermediate_size"] or config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_key_length(head_size)
    writer.add_value_length(head_size)
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_rope_dimension_count(head_size)
    writer.add_expert_count(counts[dense] - 1)
    writer.add_expert_used_count(config["num_experts_per_tok"] - 1)
    writer.add_expert_feed_forward_length(config["intermediate_size"])
    writer.add_expert_shared_count(1)
    writer.add_expert_weights_scale(1.0)
    writer.add_leading_dense_block_count(dense)
    writer.add_vocab_size(config["vocab_size"])


def _add_tokenizer(writer: gguf.GGUFWriter, folder: Path, config: dict[str, Any]) -> None:
    data = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    size = config["vocab_size"]
    tokens = [f"[PAD{i}]" for i in range(size)]
    kinds = [int(gguf.TokenType.UNUSED)] * size
    for text, token in data["model"]["vocab"].items():
        tokens[token], kinds[token] = text, int(gguf.TokenType.NORMAL)
    for added in data["added_tokens"]:
        kind = gguf.TokenType.CONTROL if added["special"] else gguf.TokenType.USER_DEFINED
        tokens[added["id"]], kinds[added["id"]] = added["content"], int(kind)
    merges = data["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("dbrx")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in merges])
    writer.add_bos_token_id(config["eos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_pad_token_id(config["pad_token_id"])
    writer.add_add_bos_token(False)


def _tensors(weights: dict[str, F32], config: dict[str, Any]) -> dict[str, F32]:
    """GGUF names -> float32 arrays, in the layout that llama.cpp's `deepseek` graph expects."""
    out = {
        "token_embd.weight": weights["model.embed_tokens.weight"],
        "output_norm.weight": weights["model.norm.weight"],
        "output.weight": weights["lm_head.weight"],
    }
    for layer, experts in enumerate(_experts(config)):
        here, there = f"model.layers.{layer}.", f"blk.{layer}."
        out[there + "attn_norm.weight"] = weights[here + "pre_attention_layernorm.weight"]
        out[there + "ffn_norm.weight"] = weights[here + "pre_feedforward_layernorm.weight"]
        for letter, heads in (
            ("q", config["num_attention_heads"]),
            ("k", config["num_key_value_heads"]),
        ):
            matrix = weights[here + f"self_attn.{letter}_proj.weight"]
            out[there + f"attn_{letter}.weight"] = _interleave(matrix, heads)
        out[there + "attn_v.weight"] = weights[here + "self_attn.v_proj.weight"]
        out[there + "attn_output.weight"] = weights[here + "self_attn.o_proj.weight"]
        for part in EXPERT_PARTS if experts == 0 else ():
            out[there + f"ffn_{part}.weight"] = weights[here + f"mlp.{part}_proj.weight"]
        if experts == 0:
            continue
        out[there + "ffn_gate_inp.weight"] = weights[here + "mlp.gate.weight"][: experts - 1]
        for part in EXPERT_PARTS:
            matrices = [
                weights[here + f"mlp.experts.{e}.{part}_proj.weight"] for e in range(experts)
            ]
            out[there + f"ffn_{part}_exps.weight"] = np.stack(matrices[:-1])
            out[there + f"ffn_{part}_shexp.weight"] = matrices[-1]
    return out


def _interleave(matrix: F32, heads: int) -> F32:
    """Rows of each head from Hugging Face's two halves to rope's pairs (x0 y0 x1 y1 ...)."""
    rows, cols = matrix.shape
    return matrix.reshape(heads, 2, rows // heads // 2, cols).swapaxes(1, 2).reshape(rows, cols)
