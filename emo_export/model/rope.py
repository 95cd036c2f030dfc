"""Rotary position embedding: the frequencies of each supported `rope_scaling`.

Source: transformers 4.57 `modeling_rope_utils.py` (ROPE_INIT_FUNCTIONS), which EMO calls.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from emo_export.errors import EmoExportError
from emo_export.interfaces import F32
from emo_export.model.config import EmoConfig
from emo_export.model.config_reader import is_positive

F64 = npt.NDArray[np.float64]

PARAMETERS: Mapping[str, frozenset[str]] = {
    "linear": frozenset({"factor"}),
    "dynamic": frozenset({"factor", "original_max_position_embeddings"}),
    "llama3": frozenset(
        {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"}
    ),
}


def rope_type(config: EmoConfig) -> str:
    """The kind of scaling: `default`, `linear`, `dynamic` or `llama3`.

    Raises EmoExportError for a kind or a parameter that this tool does not know.
    """
    scaling = config.rope_scaling
    if scaling is None:
        return "default"
    kind = scaling.get("rope_type", scaling.get("type"))
    if not isinstance(kind, str) or kind not in PARAMETERS:
        raise EmoExportError(
            f"rope_scaling of type {kind!r} is not supported (default, {', '.join(PARAMETERS)} are)"
        )
    unknown = sorted(set(scaling) - PARAMETERS[kind] - {"rope_type", "type", "rope_theta"})
    if unknown:
        raise EmoExportError(f"rope_scaling has unknown key {', '.join(unknown)} for type {kind!r}")
    for key in PARAMETERS[kind] - ({"original_max_position_embeddings"} - _needed(kind)):
        value = scaling.get(key)
        if not is_positive(value):
            raise EmoExportError(f"rope_scaling {key} is {value!r}, expected a positive number")
    if kind == "llama3" and scaling["high_freq_factor"] <= scaling["low_freq_factor"]:
        raise EmoExportError("rope_scaling high_freq_factor must exceed low_freq_factor")
    return kind


def _needed(kind: str) -> set[str]:
    return {"original_max_position_embeddings"} if kind == "llama3" else set()


def inverse_frequencies(config: EmoConfig) -> F64:
    """Radians per position for each of the head_dim / 2 pairs, float64.

    `dynamic` changes frequencies only beyond max_position_embeddings, which no export reaches, so
    within it the frequencies are the default ones.
    """
    kind, theta, size = rope_type(config), config.rope_theta, config.head_dim
    base: F64 = theta ** -(np.arange(0, size, 2, dtype=np.float64) / size)
    if kind in ("default", "dynamic"):
        return base
    scaling: Mapping[str, Any] = config.rope_scaling or {}
    if kind == "linear":
        return base / float(scaling["factor"])
    return _llama3(base, scaling)


def _llama3(base: F64, scaling: Mapping[str, Any]) -> F64:
    factor, original = float(scaling["factor"]), float(scaling["original_max_position_embeddings"])
    low, high = float(scaling["low_freq_factor"]), float(scaling["high_freq_factor"])
    wavelength = 2 * math.pi / base
    smooth = np.clip((original / wavelength - low) / (high - low), 0.0, 1.0)
    return (1 - smooth) * base / factor + smooth * base


def cos_sin(config: EmoConfig, positions: int) -> tuple[F32, F32]:
    """Tables (positions, head_dim / 2) float32, angles taken in float32 as the published code."""
    angles = np.outer(
        np.arange(positions, dtype=np.float32), inverse_frequencies(config).astype(np.float32)
    )
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
