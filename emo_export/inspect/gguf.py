"""What a .gguf file says of itself: shape, types, bytes of each part, tokenizer, needs.

The keys and tensor names of every architecture are understood, as far as they are the usual ones
(gguf-py `constants.py`). Headers only; what is wrong with it is told by gguf_judgement.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from emo_export.base.install import install_command
from emo_export.files.gguf_header import GgufArray, read_gguf
from emo_export.files.gguf_names import GGUF_NAMES
from emo_export.inspect.finding import Finding
from emo_export.inspect.judgement import judge
from emo_export.inspect.onnx import OTHER, ROPE_TABLES, plain, shown, sums
from emo_export.model.recipes import Part

# The keys of a shape that come first, in this order; all others of the architecture follow.
SHAPE = (
    "block_count context_length embedding_length attention.head_count attention.head_count_kv "
    "attention.key_length attention.value_length feed_forward_length expert_count "
    "expert_used_count expert_shared_count expert_feed_forward_length leading_dense_block_count "
    "vocab_size"
).split()
MAX_SHAPE = 64  # keys shown, of a name not longer than this
MAX_VALUES = 8  # of a list, shown one by one
TOKENIZER = ("model", "pre", "bos_token_id", "eos_token_id", "padding_token_id", "add_bos_token")

# Names that no EMO has: the part of the first pattern that fits.
FOREIGN: Sequence[tuple[str, str]] = (
    (r"^(v|a|mm)\.", "other modality"),
    (r"norm(_\w+)?\.(weight|bias)$|\.bias$|\.scale$|^norm\.|_norm\b", Part.VECTOR),
    (r"^(token_embd|per_layer_token_embd|position_embd|token_types)\.", Part.EMBED),
    (r"^(output|cls)\.", Part.HEAD),
    (r"(^|\.)rope_", ROPE_TABLES),
    (r"\.nextn\.", "next_token_heads"),
    (r"\.(ssm_|time_mix|shortconv|channel_mix)", "recurrent"),
    (r"\.(attn_|cross_attn_|indexer)", Part.ATTENTION),
    (r"_shexp\.", Part.SHARED_EXPERT),
    (r"_(ch)?exps\.|\.ffn_(gate|up|down)\.\d+\.", Part.EXPERT),
    (r"\.ffn_", Part.DENSE),
)


def gguf_inspection(path: Path) -> tuple[dict[str, Any], str, list[Finding]]:
    """Facts, judgement and findings. Raises EmoExportError when the header is damaged."""
    file = read_gguf(path)
    keys, arch = file.keys, str(file.keys.get("general.architecture"))
    shape = _shape(keys, arch)
    tokenizer = {name: plain(keys.get(f"tokenizer.ggml.{name}")) for name in TOKENIZER}
    tokens = keys.get("tokenizer.ggml.tokens")
    tokenizer["tokens"] = tokens.length if isinstance(tokens, GgufArray) else None
    if isinstance(tokens, list):
        tokenizer["tokens"] = len(tokens)
    facts = {
        "file": {
            "architecture": arch,
            "name": plain(keys.get("general.name")),
            "version": file.version,
            "bytes": file.size,
        },
        "shape": shape,
        "tensors_by_type": dict(Counter(tensor.type for tensor in file.tensors)),
        "bytes_by_part": sums((_part(t.name), t.nbytes) for t in file.tensors),
        "tokenizer": tokenizer,
        "needs": {
            "engine": "llama.cpp, any that knows these types",
            "install": install_command("llama"),
            "weights_bytes": sum(tensor.nbytes for tensor in file.tensors),
            "kv_cache_f16_bytes": _cache(shape),
        },
    }
    return facts, *judge(path, file)


def _part(name: str) -> str:
    held = GGUF_NAMES.held(name)
    if held is not None:
        return shown(held.part)
    return next((part for pattern, part in FOREIGN if re.search(pattern, name)), OTHER)


def _shape(keys: Mapping[str, Any], arch: str) -> dict[str, Any]:
    """The keys of the file's own architecture, without long names and values."""
    start = f"{arch}."
    own = [key.removeprefix(start) for key in keys if key.startswith(start)]
    names = [name for name in SHAPE if name in own] + [name for name in own if name not in SHAPE]
    short = [name for name in names if len(name) <= MAX_SHAPE][:MAX_SHAPE]
    return {name: _value(keys[start + name]) for name in short}


def _value(value: Any) -> Any:
    if isinstance(value, float):
        return f"{value:.7g}"  # as text: JSON has no NaN, and float32 has no more digits
    if isinstance(value, list):
        if len(value) > 1 and all(item == value[0] for item in value):
            return f"{len(value)} times {str(value[0])[:20]}"
        if len(value) > MAX_VALUES:
            return f"array of {len(value)}"
    return value[:MAX_SHAPE] if isinstance(value, str) else plain(value)


def _cache(shape: Mapping[str, Any]) -> int | None:
    """Bytes of the KV cache at full context, or None when the shape does not say."""
    names = "block_count context_length attention.head_count_kv".split()
    sizes = [shape.get(name) for name in (*names, "attention.key_length", "attention.value_length")]
    if not all(isinstance(size, int) for size in sizes):
        return None
    layers, context, heads, key, value = (int(str(size)) for size in sizes)
    return layers * context * heads * (key + value) * 2
