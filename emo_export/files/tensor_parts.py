"""Which part of the model a tensor of an exported file is, by its name: one table for each family.

The names are those of `converters/gguf/layout.py` and `converters/onnx/layout.py`. The first
pattern that fits counts.
"""

from __future__ import annotations

import re

from emo_export.model.recipes import Part

_GGUF = (
    (r"token_embd\.", Part.EMBED),
    (r"output\.", Part.HEAD),
    (r"blk\.\d+\.attn_(q|k|v|output)\.weight", Part.ATTENTION),
    (r"blk\.\d+\.ffn_(gate|up)_exps\.", Part.EXPERT),
    (r"blk\.\d+\.ffn_down_exps\.", Part.EXPERT_DOWN),
    (r"blk\.\d+\.ffn_(gate|up|down)_shexp\.", Part.SHARED_EXPERT),
    (r"blk\.\d+\.ffn_(gate|up|down)\.weight", Part.DENSE),
    (r"blk\.\d+\.(ffn_gate_inp|exp_probs_b)\.", Part.ROUTER),
    (r"(blk\.\d+\.)?\w+_norm\.weight", Part.VECTOR),
)
_ONNX = (
    (r"(.*_norm\.weight|.*\.bias)$", Part.VECTOR),
    (r"embed\.", Part.EMBED),
    (r"head\.", Part.HEAD),
    (r"layers\.\d+\.(qkv|attn_out)\.", Part.ATTENTION),
    (r"layers\.\d+\.router\.", Part.ROUTER),
    (r"layers\.\d+\.experts\.(fc1|\d+\.gate_up)\.", Part.EXPERT),
    (r"layers\.\d+\.experts\.(fc2|\d+\.down)\.", Part.EXPERT_DOWN),
    (r"layers\.\d+\.forced\.", Part.SHARED_EXPERT),
    (r"layers\.\d+\.dense\.", Part.DENSE),
)


def gguf_part(name: str) -> Part | None:
    """The part of a tensor of a GGUF file; None for what is in none (rope tables, other models)."""
    return next((part for pattern, part in _GGUF if re.match(pattern, name)), None)


def onnx_part(name: str) -> Part | None:
    """The part of an initializer of a graph; None for what is in none (rope tables, constants)."""
    return next((part for pattern, part in _ONNX if re.match(pattern, name)), None)
