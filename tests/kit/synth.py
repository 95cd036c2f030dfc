"""Small random EMO checkpoints, written with the safetensors library and plain json."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

from tests.kit.paths import GOLDEN

DEFAULTS: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_experts": 8,
    "intermediate_size": 32,
    "num_experts_per_tok": 3,
    "num_shared_experts": 1,
    "vocab_size": 512,
    "max_position_embeddings": 128,
    "rope_theta": 500000.0,
    "rms_norm_eps": 1e-6,
}

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}

CONFIGS: dict[str, dict[str, Any]] = {
    "mha": {},
    "gqa": {"num_key_value_heads": 2},
    "mqa": {"num_key_value_heads": 1},
    "odd_48_20": {"hidden_size": 48, "intermediate_size": 20, "num_attention_heads": 3},
    "odd_40_24": {"hidden_size": 40, "intermediate_size": 24, "num_attention_heads": 5},
    "odd_36_32": {"hidden_size": 36, "num_attention_heads": 3},
    "no_shared": {"num_shared_experts": 0},
    "no_shared_norm_topk": {"num_shared_experts": 0, "norm_topk_prob": True},
    "k_equals_e": {"num_experts": 4, "num_experts_per_tok": 4},
    "shared_only_routed_one": {"num_experts_per_tok": 2},
    "two_shared": {"num_shared_experts": 2, "num_experts_per_tok": 4},
    "always_active": {
        "num_shared_experts": 0,
        "always_active_experts": [1, 5],
        "num_experts_per_tok": 4,
    },
    # S stays 1 here: the list wins in layer 0, the shared expert holds in layer 1.
    "always_active_per_layer": {"always_active_experts_per_layer": [[0, 6], []]},
    "dense_first": {"num_experts_per_layer": [0, 8], "dense_intermediate_size": 96},
    "dense_first_bias": {
        "num_experts_per_layer": [0, 8],
        "num_shared_experts_per_layer": [0, 1],
        "dense_intermediate_size": 96,
        "dense_mlp_bias": True,
    },
    "dense_middle": {
        "num_hidden_layers": 3,
        "num_experts_per_layer": [8, 0, 8],
        "dense_intermediate_size": 80,
    },
    "per_layer_counts": {"num_experts_per_layer": [8, 4]},
    "per_layer_odd_counts": {
        "num_experts_per_layer": [7, 5],
        "num_shared_experts_per_layer": [2, 1],
    },
    # Counts that divide the largest: by 2 and 4 in the first two, by 3 in the next two.
    "no_shared_counts": {
        "num_shared_experts": 0,
        "num_hidden_layers": 3,
        "num_experts_per_layer": [8, 4, 2],
        "num_experts_per_tok": 2,
    },
    "shared_counts": {"num_experts_per_layer": [9, 5]},
    "norm_topk_counts": {
        "num_shared_experts": 0,
        "norm_topk_prob": True,
        "num_experts_per_layer": [12, 4],
    },
    "always_active_counts": {
        "num_shared_experts": 0,
        "always_active_experts": [2],
        "num_experts_per_layer": [9, 3],
        "num_experts_per_tok": 2,
    },
    "dense_middle_narrow": {
        "num_hidden_layers": 3,
        "num_experts_per_layer": [8, 0, 8],
        "dense_intermediate_size": 16,
    },
    "dense_middle_wide": {
        "num_shared_experts": 0,
        "num_hidden_layers": 4,
        "num_experts_per_layer": [0, 8, 0, 4],
        "intermediate_size": 64,
        "dense_intermediate_size": 352,
    },
    "attention_bias": {"attention_bias": True},
    "tied": {"tie_word_embeddings": True},
    "rope_linear": {"rope_scaling": {"type": "linear", "factor": 4.0}},
    "rope_dynamic": {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
    "rope_llama3": {"rope_scaling": LLAMA3},
    "head_dim": {"head_dim": 24, "num_key_value_heads": 2},
    "bf16": {"dtype": "bfloat16"},
    "f16": {"dtype": "float16"},
    "one_layer": {"num_hidden_layers": 1},
}
"""Keyword arguments of make_checkpoint for each configuration that the tests go through."""

FEATURES = (
    *("gqa", "odd_48_20", "no_shared_norm_topk", "k_equals_e", "two_shared", "head_dim", "bf16"),
    *("always_active_per_layer", "always_active_counts", "dense_first_bias", "dense_middle_wide"),
    *("per_layer_odd_counts", "attention_bias", "tied", "rope_llama3"),
)
"""Those that have each feature of a configuration between them; the others are combinations."""

LAYOUTS = (
    *("mha", "gqa", "odd_48_20", "no_shared", "tied", "head_dim", "dense_first_bias"),
    *("always_active_per_layer", "per_layer_odd_counts", "norm_topk_counts"),
)
"""Those between them that store each kind of matrix, for what depends on how one is stored."""

ROUTER_GAIN = 2.0  # spread of the router's logits: near-ties at the K-th place become rare
SHARED_ROW = 1e-15  # what a lone shared expert's router row trains to (docs/emo.md)
MIN_TOKENIZER = 258  # 256 bytes and two special tokens


def make_checkpoint(
    folder: Path,
    *,
    seed: int = 0,
    dtype: str = "float32",
    shards: int = 1,
    tokenizer: bool = True,
    **config_overrides: Any,
) -> Path:
    """Write config.json, the weights (in `shards` files) and the tokenizer; returns `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    config = make_config(dtype, **config_overrides)
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True), "utf-8")
    rng = np.random.default_rng(seed)
    kind = getattr(torch, dtype)
    tensors = {name: torch.from_numpy(w).to(kind) for name, w in _weights(config, rng)}
    _save(folder, tensors, shards)
    if tokenizer:
        _write_tokenizer(folder, config)
    return folder


def make_config(dtype: str = "float32", **overrides: Any) -> dict[str, Any]:
    """The base golden's config.json, every key of it, at the small default shape."""
    config: dict[str, Any] = json.loads((GOLDEN / "base" / "config.json").read_text("utf-8"))
    config |= DEFAULTS | overrides | {"torch_dtype": dtype}
    if "num_key_value_heads" not in overrides:
        config["num_key_value_heads"] = config["num_attention_heads"]
    if config["vocab_size"] < 512:
        config |= {"eos_token_id": 256, "pad_token_id": 257}
    return config


# --- weights ---------------------------------------------------------------------------------


def _weights(config: dict[str, Any], rng: np.random.Generator) -> Iterator[tuple[str, Any]]:
    """(name, float32 array) of every tensor; scales keep the signal near one at any shape."""
    hidden, vocab = config["hidden_size"], config["vocab_size"]
    tied = bool(config["tie_word_embeddings"])
    # A tied embedding is also the head, whose rows must not outgrow the logits.
    scale = 2.0 / np.sqrt(hidden)
    yield "model.embed_tokens.weight", _normal(rng, (vocab, hidden), scale if tied else 1.0)
    counts = config["num_experts_per_layer"]
    counts = counts or [config["num_experts"]] * config["num_hidden_layers"]
    for layer, count in enumerate(counts):
        prefix = f"model.layers.{layer}"
        for norm in ("pre_attention_layernorm", "pre_feedforward_layernorm"):
            yield f"{prefix}.{norm}.weight", _norm(rng, hidden)
        yield from _attention(config, f"{prefix}.self_attn", rng)
        if count == 0:
            width, bias = config["dense_intermediate_size"], config["dense_mlp_bias"]
            yield from _mlp(f"{prefix}.mlp", hidden, width, bias, rng)
            continue
        yield f"{prefix}.mlp.gate.weight", _router(config, layer, count, rng)
        for expert in range(count):
            name = f"{prefix}.mlp.experts.{expert}"
            yield from _mlp(name, hidden, config["intermediate_size"], False, rng)
    yield "model.norm.weight", _norm(rng, hidden)
    if not tied:
        yield "lm_head.weight", _normal(rng, (vocab, hidden), scale)


def _attention(
    config: dict[str, Any], name: str, rng: np.random.Generator
) -> Iterator[tuple[str, Any]]:
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    size = config.get("head_dim") or hidden // heads
    wide, narrow = heads * size, config["num_key_value_heads"] * size
    shapes = {"q": (wide, hidden), "k": (narrow, hidden), "v": (narrow, hidden)}
    for part, shape in (shapes | {"o": (hidden, wide)}).items():
        yield from _linear(f"{name}.{part}_proj", shape, config["attention_bias"], rng)


def _mlp(
    name: str, hidden: int, width: int, bias: bool, rng: np.random.Generator
) -> Iterator[tuple[str, Any]]:
    shapes = {"gate": (width, hidden), "up": (width, hidden), "down": (hidden, width)}
    for part, shape in shapes.items():
        yield from _linear(f"{name}.{part}_proj", shape, bias, rng)


def _linear(
    name: str, shape: tuple[int, int], bias: bool, rng: np.random.Generator
) -> Iterator[tuple[str, Any]]:
    yield f"{name}.weight", _normal(rng, shape, 1.0 / np.sqrt(shape[1]))
    if bias:
        yield f"{name}.bias", _normal(rng, shape[:1], 0.3)


def _router(config: dict[str, Any], layer: int, count: int, rng: np.random.Generator) -> Any:
    rows = _normal(rng, (count, config["hidden_size"]), ROUTER_GAIN / config["hidden_size"] ** 0.5)
    listed = config["num_shared_experts_per_layer"] if config["num_experts_per_layer"] else None
    shared = listed[layer] if listed else min(config["num_shared_experts"], count)
    by_layer = config["always_active_experts_per_layer"]
    always = by_layer[layer] if by_layer else config["always_active_experts"]
    # With always active experts the last one is an ordinary expert, whatever S says.
    if shared == 1 and not always:
        rows[-1] *= SHARED_ROW
    return rows


def _norm(rng: np.random.Generator, size: int) -> Any:
    return (1.0 + 0.2 * rng.standard_normal(size)).astype(np.float32)


def _normal(rng: np.random.Generator, shape: tuple[int, ...], scale: float) -> Any:
    return (rng.standard_normal(shape) * scale).astype(np.float32)


# --- files -----------------------------------------------------------------------------------


def _save(folder: Path, tensors: dict[str, torch.Tensor], shards: int) -> None:
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return
    names = list(tensors)
    weight_map: dict[str, str] = {}
    for i in range(shards):
        file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        part = names[len(names) * i // shards : len(names) * (i + 1) // shards]
        save_file({n: tensors[n] for n in part}, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    total = sum(t.numel() * t.element_size() for t in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2), "utf-8")


def _write_tokenizer(folder: Path, config: dict[str, Any]) -> None:
    base = GOLDEN / "base"
    shutil.copyfile(base / "tokenizer_config.json", folder / "tokenizer_config.json")
    ids = {"eos_token_id": config["eos_token_id"], "pad_token_id": config["pad_token_id"]}
    generation = json.dumps(ids | {"_from_model_config": True}, indent=2)
    (folder / "generation_config.json").write_text(generation, "utf-8")
    if config["vocab_size"] >= 512:
        shutil.copyfile(base / "tokenizer.json", folder / "tokenizer.json")
    else:
        byte_tokenizer(config["vocab_size"]).save(str(folder / "tokenizer.json"))


def byte_tokenizer(vocab_size: int) -> Tokenizer:
    """Byte-level BPE without merges: 256 bytes, then the two special tokens, base's split."""
    if vocab_size < MIN_TOKENIZER:
        raise ValueError(f"vocab_size {vocab_size} can't hold {MIN_TOKENIZER} tokens")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    result = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    content = json.loads((GOLDEN / "base" / "tokenizer.json").read_text("utf-8"))
    regex = content["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"]
    result.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(regex), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    result.decoder = decoders.ByteLevel()
    special = ("<|endoftext|>", "<|pad|>")
    result.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in special])
    return result
