"""An independent EMO forward pass: numpy float64, token by token and expert by expert.

Written from docs/emo.md alone and sharing no code with emo_export: a mistake there can't hide here.
It is slow on purpose; the published code's goldens check it in test_oracle.py.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import safe_open

F64 = npt.NDArray[np.float64]


class Weights:
    """Tensors by name as float64, each read when asked (torch reads bfloat16, numpy does not)."""

    def __init__(self, folder: Path) -> None:
        index = folder / "model.safetensors.index.json"
        if index.is_file():
            shards = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
        else:
            shards = ["model.safetensors"]
        self._files: dict[str, Any] = {}
        self._kept: dict[str, F64] = {}
        for shard in shards:
            handle = safe_open(folder / shard, framework="pt")
            self._files |= dict.fromkeys(handle.keys(), handle)

    def __call__(self, name: str) -> F64:
        if name not in self._kept:
            self._kept[name] = self._files[name].get_tensor(name).double().numpy()
        return self._kept[name]

    def linear(self, name: str, x: F64, bias: bool = False) -> F64:
        """x @ W.T, plus the bias where the config says that there is one."""
        y: F64 = x @ self(f"{name}.weight").T
        return y + self(f"{name}.bias") if bias else y


def oracle_logits(folder: Path, ids: npt.NDArray[np.int64]) -> tuple[F64, list[F64]]:
    """Logits (B, T, V), and the router's logits (B*T, E) of each layer that has experts."""
    config = json.loads((folder / "config.json").read_text("utf-8"))
    weights = Weights(folder)
    rows = [_sequence(config, weights, row) for row in ids]
    logits = np.stack([row[0] for row in rows])
    routers = [np.concatenate(parts) for parts in zip(*(row[1] for row in rows), strict=True)]
    return logits, routers


def _sequence(
    config: Mapping[str, Any], weights: Weights, ids: npt.NDArray[np.int64]
) -> tuple[F64, list[F64]]:
    eps = config["rms_norm_eps"]
    x = weights("model.embed_tokens.weight")[ids]
    routers: list[F64] = []
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        normed = rms_norm(x, weights(f"{prefix}.pre_attention_layernorm.weight"), eps)
        x = x + attention(config, weights, f"{prefix}.self_attn", normed)
        normed = rms_norm(x, weights(f"{prefix}.pre_feedforward_layernorm.weight"), eps)
        if expert_counts(config)[layer] == 0:
            bias = bool(config.get("dense_mlp_bias"))
            x = x + mlp(weights, f"{prefix}.mlp", normed, bias)
        else:
            y, router = experts(config, weights, layer, normed)
            x = x + y
            routers.append(router)
    x = rms_norm(x, weights("model.norm.weight"), eps)
    head = "model.embed_tokens" if config.get("tie_word_embeddings") else "lm_head"
    return weights.linear(head, x), routers


def rms_norm(x: F64, weight: F64, eps: float) -> F64:
    """Scale each row to a root mean square of one, then by the weight."""
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps) * weight


def silu(x: F64) -> F64:
    """x times its sigmoid."""
    return x / (1.0 + np.exp(-x))


def softmax(x: F64) -> F64:
    """Over a vector."""
    e = np.exp(x - np.max(x))
    return e / np.sum(e)


def mlp(weights: Weights, name: str, x: F64, bias: bool = False) -> F64:
    """down(silu(gate x) * up x): an expert, or a dense layer."""
    gate = weights.linear(f"{name}.gate_proj", x, bias)
    up = weights.linear(f"{name}.up_proj", x, bias)
    return weights.linear(f"{name}.down_proj", silu(gate) * up, bias)


# --- attention -------------------------------------------------------------------------------


def attention(config: Mapping[str, Any], weights: Weights, name: str, x: F64) -> F64:
    """Causal grouped-query attention over (T, D), one head and one token at a time."""
    heads = config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads") or heads
    size = config.get("head_dim") or config["hidden_size"] // heads
    bias = bool(config.get("attention_bias"))
    tokens = len(x)
    q = weights.linear(f"{name}.q_proj", x, bias).reshape(tokens, heads, size)
    k = weights.linear(f"{name}.k_proj", x, bias).reshape(tokens, kv_heads, size)
    v = weights.linear(f"{name}.v_proj", x, bias).reshape(tokens, kv_heads, size)
    frequencies = rope_frequencies(config, size, tokens)
    out = np.zeros((tokens, heads, size))
    for head in range(heads):
        group = head // (heads // kv_heads)
        queries = rotate(q[:, head], frequencies)
        keys = rotate(k[:, group], frequencies)
        for t in range(tokens):
            scores = keys[: t + 1] @ queries[t] / math.sqrt(size)
            out[t, head] = softmax(scores) @ v[: t + 1, group]
    return weights.linear(f"{name}.o_proj", out.reshape(tokens, heads * size), bias)


def rotate(x: F64, frequencies: F64) -> F64:
    """Rotate-half (NEOX) position embedding of (T, head size): pairs are (i, i + size / 2)."""
    half = x.shape[1] // 2
    angles = np.arange(len(x))[:, None] * frequencies[None, :]
    cos, sin = np.cos(angles), np.sin(angles)
    first, second = x[:, :half], x[:, half:]
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=1)


def rope_frequencies(config: Mapping[str, Any], size: int, tokens: int) -> F64:
    """Radians per position of each pair, for the kind of rope_scaling that the config names."""
    theta = config["rope_theta"]
    plain = [theta ** (-2.0 * i / size) for i in range(size // 2)]
    scaling = config.get("rope_scaling") or {}
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "linear":
        return np.array([f / scaling["factor"] for f in plain])
    if kind == "llama3":
        return np.array([_llama3(f, scaling) for f in plain])
    if kind == "dynamic" and tokens > config["max_position_embeddings"]:
        raise ValueError("dynamic rope beyond max_position_embeddings is not the default one")
    if kind not in ("default", "dynamic"):
        raise ValueError(f"the oracle has no rope of type {kind}")
    return np.array(plain)


def _llama3(frequency: float, scaling: Mapping[str, Any]) -> float:
    """High frequencies stay, low ones slow down by `factor`, those between are interpolated."""
    original, factor = scaling["original_max_position_embeddings"], scaling["factor"]
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    turns = original * frequency / (2.0 * math.pi)  # rotations within the original context
    if turns > high:
        return frequency
    if turns < low:
        return float(frequency / factor)
    kept = (turns - low) / (high - low)
    return float(kept * frequency + (1.0 - kept) * frequency / factor)


# --- experts ---------------------------------------------------------------------------------


def expert_counts(config: Mapping[str, Any]) -> list[int]:
    """Experts of each layer; 0 is a dense layer."""
    per_layer = config.get("num_experts_per_layer")
    return list(per_layer or [config["num_experts"]] * config["num_hidden_layers"])


def shared_count(config: Mapping[str, Any], layer: int) -> int:
    """Shared experts of a layer; the per-layer list goes with per-layer expert counts only."""
    if config.get("num_experts_per_layer") is None:
        return int(config["num_shared_experts"])
    per_layer = config.get("num_shared_experts_per_layer")
    if per_layer is not None:
        return int(per_layer[layer])
    return min(int(config["num_shared_experts"]), expert_counts(config)[layer])


def always_active(config: Mapping[str, Any], layer: int) -> list[int]:
    """Experts that every token takes with their own weight, by their ids."""
    per_layer = config.get("always_active_experts_per_layer")
    if per_layer is not None:
        return list(per_layer[layer] or [])
    return list(config.get("always_active_experts") or [])


def experts(config: Mapping[str, Any], weights: Weights, layer: int, x: F64) -> tuple[F64, F64]:
    """The weighted sum of the experts that each token takes, and the router's logits."""
    name = f"model.layers.{layer}.mlp"
    router = weights.linear(f"{name}.gate", x)
    y = np.zeros_like(x)
    for t in range(len(x)):
        for expert, weight in route(config, layer, router[t]).items():
            y[t] += weight * mlp(weights, f"{name}.experts.{expert}", x[t])
    return y, router


def route(config: Mapping[str, Any], layer: int, logits: F64) -> dict[int, float]:
    """Expert -> weight for one token."""
    take, shared = config["num_experts_per_tok"], shared_count(config, layer)
    always = always_active(config, layer)
    if always:
        p = softmax(logits)
        others = [e for e in _descending(p) if e not in always]
        return {e: float(p[e]) for e in always + others[: take - len(always)]}
    if shared:
        routed = len(logits) - shared
        p, s = softmax(logits[:routed]) if routed else np.zeros(0), softmax(logits[routed:])
        chosen = {e: float(p[e]) for e in _descending(p)[: take - shared]}
        return chosen | {routed + i: float(s[i]) for i in range(shared)}
    p = softmax(logits)
    best = _descending(p)[:take]
    total = float(sum(p[e] for e in best)) if config.get("norm_topk_prob") else 1.0
    return {e: float(p[e]) / total for e in best}


def _descending(p: F64) -> list[int]:
    return sorted(range(len(p)), key=lambda e: -p[e])
