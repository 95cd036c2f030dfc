"""Bytes that one decode step reads: weights from a file's header, and the KV cache.

Every tensor is read whole, except the embedding (one row of it), the tables of rotary angles (one
row) and the routed experts, of which a token takes some: `used` of `available`. This is the least
that any engine must read; one that copies weights before it multiplies (the `standard` graph does)
moves more.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emo_export.errors import EmoExportError
from emo_export.files import onnx_names
from emo_export.files.gguf_header import GgufFile
from emo_export.files.gguf_names import GGUF_NAMES
from emo_export.files.gguf_types import ARCHITECTURES
from emo_export.files.kv_cache import CACHE_F16, CACHE_F32, CACHE_INT8, row_bytes
from emo_export.files.onnx_header import OnnxFile
from emo_export.files.tensor_names import Form, Held
from emo_export.model.config import EmoConfig
from emo_export.model.names import Role

ONNX_CACHE_BYTES = {CACHE_F32: 4, CACHE_INT8: 1}  # of a value; the scales are in the graph
BF16_BYTES = 2
SMALL = 4096  # bytes of the largest constant that a graph of ours holds beside its weights
_CACHE_KEYS = ("num_hidden_layers", "num_key_value_heads", "head_dim")


@dataclass(frozen=True)
class PerToken:
    """`weights`: bytes of weights; `cache`: bytes of KV cache for each position in it."""

    weights: float
    cache: int

    def at(self, positions: float) -> float:
        """Bytes of one step with this many positions in the cache, its own included."""
        return self.weights + self.cache * positions


def gguf_per_token(path: Path, file: GgufFile, kv_cache: str = CACHE_F16) -> PerToken:
    """What a step reads of a GGUF file that EMO was converted to, with a KV cache of a type.

    Raises EmoExportError for another architecture, keys that don't fit the tensors, and heads that
    don't fit the type.
    """
    arch = str(file.keys.get("general.architecture"))
    if arch not in ARCHITECTURES or file.keys.get(f"{arch}.nextn_predict_layers", 0):
        raise EmoExportError(f"{path}: bytes per token are not known for the architecture {arch}")

    def number(key: str) -> int:
        return _whole_number(file.keys.get(f"{arch}.{key}"), f"{arch}.{key}", path)

    whole_embedding = GGUF_NAMES.name(Role.HEAD) not in {tensor.name for tensor in file.tensors}
    total = 0.0
    for tensor in file.tensors:
        share, held = 1.0, GGUF_NAMES.held(tensor.name)
        if held is None:
            raise EmoExportError(
                f"{path}: {tensor.name} is no tensor that export writes, so bytes per token are "
                "not known"
            )
        if held.roles == (Role.EMBED,) and not whole_embedding:
            share = 1 / tensor.shape[0]
        elif held.form == Form.STACK:
            share = _share(number("expert_used_count"), tensor.shape[0], tensor.name, path)
        total += tensor.nbytes * share
    heads = number("block_count") * number("attention.head_count_kv")
    sizes = (number("attention.key_length"), number("attention.value_length"))
    return PerToken(total, heads * sum(row_bytes(kv_cache, size) for size in sizes))


def onnx_per_token(
    path: Path, file: OnnxFile, config: Mapping[str, Any], kv_cache: str = CACHE_F32
) -> PerToken:
    """What a step reads of an ONNX graph that export made, with a KV cache of a type.

    `config` is the folder's config.json. Raises EmoExportError for initializers that are not ours.
    """
    by_name = {tensor.name: onnx_names.held(tensor.name) for tensor in file.initializers}
    experts = _experts_by_layer(held for held in by_name.values() if held)
    total = 0.0
    for tensor in file.initializers:
        share, held = 1.0, by_name[tensor.name]
        if held and (held.form == Form.STACK or (held.form == Form.OWN and held.expert >= 0)):
            stacked = held.form == Form.STACK
            available = tensor.shape[0] if stacked else len(experts[held.layer, Form.OWN])
            per_token = _whole_number(
                config.get("num_experts_per_tok"), "num_experts_per_tok", path
            )
            used = per_token - len(experts[held.layer, Form.SHARED])
            share = _share(used, available, tensor.name, path)
        elif tensor.name in onnx_names.ANGLES or (held and held.roles == (Role.EMBED,)):
            share = 1 / tensor.shape[0]
        elif held is None:
            share = 0.0  # a constant of the graph
            if tensor.nbytes > SMALL:
                raise EmoExportError(
                    f"{path}: initializer {tensor.name!r} of {tensor.nbytes} bytes is not one of a "
                    "graph that export makes, so bytes per token are not known"
                )
        total += tensor.nbytes * share
    layers, heads, size = (_whole_number(config.get(key), key, path) for key in _CACHE_KEYS)
    return PerToken(total, 2 * layers * heads * size * ONNX_CACHE_BYTES[kv_cache])


def check_olmoe(config: EmoConfig, path: Path) -> None:
    """Refuse with EmoExportError a model of a shape that no OLMoE has."""
    counts = {layer.num_experts for layer in config.layers}
    if counts != {config.num_experts}:
        raise EmoExportError(
            f"{path}: its layers have {sorted(counts)} experts; all of an OLMoE's have as many"
        )
    if config.head_dim * config.num_attention_heads != config.hidden_size:
        raise EmoExportError(
            f"{path}: {config.num_attention_heads} heads of {config.head_dim} beside hidden_size "
            f"{config.hidden_size}, which an OLMoE cannot have"
        )
    if config.attention_bias:
        raise EmoExportError(f"{path}: attention_bias is set, which the stand-in does not have")


def olmoe_bytes(config: EmoConfig) -> int:
    """Bytes in bfloat16 of an OLMoE of this shape."""
    each, shared = _olmoe_parameters(config)
    experts = config.num_hidden_layers * config.num_experts * each
    tables = config.vocab_size * config.hidden_size
    return BF16_BYTES * (experts + shared + (0 if config.tie_word_embeddings else tables))


def olmoe_per_token(config: EmoConfig) -> PerToken:
    """What a step reads of an OLMoE of this shape in bfloat16, with a cache of the same type.

    Its experts are all routed, and a token takes as many of them as of EMO's in all.
    """
    each, shared = _olmoe_parameters(config)
    used = config.num_hidden_layers * config.num_experts_per_tok * each
    cache = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    weights = BF16_BYTES * (used + shared + config.hidden_size)
    return PerToken(weights, cache * BF16_BYTES)


def _olmoe_parameters(config: EmoConfig) -> tuple[int, int]:
    """Parameters of one expert, and of everything else but the embedding (the head is there)."""
    hidden = config.hidden_size
    wide = config.num_attention_heads * config.head_dim
    narrow = config.num_key_value_heads * config.head_dim
    attention = 2 * hidden * (wide + narrow) + wide + narrow  # with the norms of q and k
    layer = attention + config.num_experts * hidden + 2 * hidden
    ends = config.vocab_size * hidden + hidden
    return 3 * hidden * config.intermediate_size, config.num_hidden_layers * layer + ends


def _experts_by_layer(tensors: Iterable[Held]) -> Mapping[tuple[int, Form], set[int]]:
    """(layer, form) -> the experts that have matrices of their own."""
    found: defaultdict[tuple[int, Form], set[int]] = defaultdict(set)
    for held in tensors:
        if held.expert >= 0:
            found[held.layer, held.form].add(held.expert)
    return found


def _share(used: int, available: int, name: str, path: Path) -> float:
    if not 0 <= used <= available:
        raise EmoExportError(f"{path}: a token takes {used} experts, {name} has {available}")
    return used / available


def _whole_number(value: Any, key: str, path: Path) -> int:
    if type(value) is not int or value < 0:
        raise EmoExportError(f"{path}: {key} is {value!r}, expected a whole number")
    return value
