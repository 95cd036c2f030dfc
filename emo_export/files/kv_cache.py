"""Types of the KV cache, by the names that the engines have for them, and what they take."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from emo_export.errors import EmoExportError
from emo_export.files.gguf_types import TENSOR_TYPES

CACHE_F32, CACHE_F16, CACHE_Q8_0, CACHE_INT8 = "f32", "f16", "q8_0", "int8"
KV_CACHES = (CACHE_F32, CACHE_F16, CACHE_Q8_0, CACHE_INT8)
"""llama.cpp has the first three, ONNX Runtime the first and the last."""

NUMBERS: Mapping[str, int] = {
    name.lower(): number
    for number, (name, _, _) in TENSOR_TYPES.items()
    if name.lower() in KV_CACHES
}
"""Of ggml's enumeration."""


def row_bytes(kind: str, size: int) -> int:
    """Bytes of the keys or the values of one head of `size` at one position.

    Raises EmoExportError where the type's blocks do not divide the head.
    """
    _, block, nbytes = TENSOR_TYPES[NUMBERS[kind]]
    if size % block:
        raise EmoExportError(
            f"--kv-cache {kind}: its blocks of {block} do not divide heads of {size}; "
            f"choose {CACHE_F16}"
        )
    return size // block * nbytes


def no_int8(path: Path) -> str:
    """Why the graph in a folder has no int8 cache."""
    return (
        f"{path}: --kv-cache {CACHE_INT8} needs attention by GroupQueryAttention, which this graph "
        "has not; export qmoe, or if without --plain-attention"
    )
