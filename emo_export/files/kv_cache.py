"""Types of the KV cache, by the names of ggml's types, and what they take."""

from __future__ import annotations

from collections.abc import Mapping

from emo_export.errors import EmoExportError
from emo_export.files.gguf_types import TENSOR_TYPES

CACHE_F32, CACHE_F16, CACHE_Q8_0 = "f32", "f16", "q8_0"
KV_CACHES = (CACHE_F32, CACHE_F16, CACHE_Q8_0)
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
