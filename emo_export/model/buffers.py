"""Buffers that a checkpoint may hold although config.json alone determines them.

Source: the rotary embedding of transformers 4 and 5 (`inv_freq`, `original_inv_freq`), one for the
model or, before 4.48, one for each layer; `cos_cached` and `sin_cached` of older code.
"""

from __future__ import annotations

import math
import re
from dataclasses import replace

import numpy as np

from emo_export.errors import EmoExportError
from emo_export.model.config import EmoConfig
from emo_export.model.rope import inverse_frequencies
from emo_export.model.safetensors_file import LazyTensor

_NAME = re.compile(
    r"model\.(?:layers\.(\d{1,9})\.self_attn\.)?rotary_emb\."
    r"(inv_freq|original_inv_freq|cos_cached|sin_cached)"
)
TABLES = ("cos_cached", "sin_cached")
_ROUNDING = {"F64": 2.0**-18, "F32": 2.0**-18, "F16": 2.0**-10, "BF16": 2.0**-8}
"""Relative error of a stored value; it was computed in float32, with some library's power."""
_SMALLEST = {"F64": 0.0, "F32": 0.0, "F16": 2.0**-24, "BF16": 0.0}
"""Absolute error, where a type's small values are coarse."""
_ANGLE = 2.0**-20
"""Absolute error of an angle for each position: a float32 product of a rounded frequency."""
PIECE = 4096  # positions of a table that are looked at at once


def is_buffer(name: str, config: EmoConfig) -> bool:
    """Whether a tensor of this name is computed from the config."""
    match = _NAME.fullmatch(name)
    return match is not None and int(match[1] or 0) < config.num_hidden_layers


def check_buffer(name: str, tensor: LazyTensor, config: EmoConfig) -> None:
    """Compare a buffer with what the config gives.

    Raises EmoExportError where they differ: the model was then trained with other positions than
    config.json says, or computes them in another way.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise ValueError(f"{name} is no buffer")
    frequencies, is_table = inverse_frequencies(config), match[2] in TABLES
    size = config.head_dim if is_table else config.head_dim // 2
    if tensor.shape[-1] != size or not (is_table or len(tensor.shape) == 1):
        raise EmoExportError(
            f"{tensor.file}: buffer {tensor.name} has shape {list(tensor.shape)}; config.json "
            f"calls for {size} values{' a position' * is_table} (head_dim {config.head_dim})"
        )
    count = math.prod(tensor.shape[:-1])
    flat = replace(tensor, shape=(count, size))
    for start in range(0, count, PIECE):
        stored = flat.rows(start, min(start + PIECE, count))
        wanted, error = frequencies[None], np.zeros((1, 1))
        if is_table:
            positions = np.arange(start, start + len(stored), dtype=np.float64)[:, None]
            angles = positions * frequencies
            angles = np.concatenate([angles, angles], axis=1)
            wanted = np.cos(angles) if match[2] == "cos_cached" else np.sin(angles)
            error = (1 + positions) * _ANGLE
        allowed = error + np.abs(wanted) * _ROUNDING[tensor.dtype] + _SMALLEST[tensor.dtype]
        off = np.argwhere(np.abs(stored - wanted) > allowed)
        if len(off):
            row, column = map(int, off[0])
            raise EmoExportError(
                f"{tensor.file}: buffer {tensor.name} holds {float(stored[row, column]):.7g} at "
                f"{[start + row, column] if is_table else [column]}, where config.json (rope_theta "
                f"{config.rope_theta:g}, rope_scaling {config.rope_scaling}) gives "
                f"{float(wanted[row, column]):.7g}: the model was made with others; correct them, "
                "or remove the buffer if it is stale"
            )
