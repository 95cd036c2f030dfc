"""The types of a GGUF file: of key values and of tensors, with their sizes, and of whole files.

Source: ggml `docs/gguf.md`, `ggml-common.h` and gguf-py `constants.py` (block sizes).
"""

from __future__ import annotations

from collections.abc import Mapping

from emo_export.model.recipes import AUTO

STRING, ARRAY, BOOL = 8, 9, 7
SCALARS: Mapping[int, tuple[str, str]] = {
    0: ("uint8", "B"),
    1: ("int8", "b"),
    2: ("uint16", "H"),
    3: ("int16", "h"),
    4: ("uint32", "I"),
    5: ("int32", "i"),
    6: ("float32", "f"),
    BOOL: ("bool", "B"),
    10: ("uint64", "Q"),
    11: ("int64", "q"),
    12: ("float64", "d"),
}
VALUE_NAMES = {kind: name for kind, (name, _) in SCALARS.items()} | {
    STRING: "string",
    ARRAY: "array",
}
# ggml type id, name, values of a block, bytes of a block; the gaps are types that were removed.
_TYPES = """
    0 F32 1 4, 1 F16 1 2, 2 Q4_0 32 18, 3 Q4_1 32 20, 6 Q5_0 32 22, 7 Q5_1 32 24, 8 Q8_0 32 34,
    9 Q8_1 32 40, 10 Q2_K 256 84, 11 Q3_K 256 110, 12 Q4_K 256 144, 13 Q5_K 256 176,
    14 Q6_K 256 210, 15 Q8_K 256 292, 16 IQ2_XXS 256 66, 17 IQ2_XS 256 74, 18 IQ3_XXS 256 98,
    19 IQ1_S 256 50, 20 IQ4_NL 32 18, 21 IQ3_S 256 110, 22 IQ2_S 256 82, 23 IQ4_XS 256 136,
    24 I8 1 1, 25 I16 1 2, 26 I32 1 4, 27 I64 1 8, 28 F64 1 8, 29 IQ1_M 256 56, 30 BF16 1 2,
    34 TQ1_0 256 54, 35 TQ2_0 256 66, 39 MXFP4 32 17, 40 NVFP4 64 36, 41 Q1_0 128 18
"""
TENSOR_TYPES: Mapping[int, tuple[str, int, int]] = {
    int(number): (name, int(block), int(size))
    for number, name, block, size in (entry.split() for entry in _TYPES.split(","))
}

ARCHITECTURES = ("deepseek", "glm4moe")
"""llama.cpp's graphs that EMO is written for, in the order of preference."""

FILE_TYPES: Mapping[str, int] = {
    "f32": 0,
    "f16": 1,
    "bf16": 32,
    "q8_0": 7,
    "q6_k": 18,
    "q5_k_m": 17,
    "q5_k_s": 16,
    "q5_1": 9,
    "q5_0": 8,
    "q4_k_m": 15,
    "q4_k_s": 14,
    "q4_1": 3,
    "q4_0": 2,
    "iq4_nl": 25,
    "iq4_xs": 30,
    "mxfp4": 38,
    "q3_k_l": 13,
    "q3_k_m": 12,
    "q3_k_s": 11,
    "iq3_s": 26,
    "iq3_xxs": 23,
    "q2_k": 10,
    "iq2_s": 28,
    "iq2_xs": 20,
    "iq2_xxs": 19,
    AUTO: 1024,  # LLAMA_FTYPE_GUESSED, which llama.cpp has for files that name none
}
"""`general.file_type` of each GGUF target, best quality first (llama.h, enum llama_ftype)."""
