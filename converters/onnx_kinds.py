"""The three graphs: which operators each may use, and which ONNX Runtime opens it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from emo_export.config import EmoConfig


@dataclass(frozen=True)
class Kind:
    """One kind of decoder graph.

    `opset` is that of the standard operators; `microsoft` allows ONNX Runtime's own beside them.
    """

    name: str
    opset: int
    ir_version: int
    onnxruntime_min: str
    microsoft: bool

    def uses_gqa(self, config: EmoConfig) -> bool:
        """Tell whether attention is GroupQueryAttention, which takes heads of a multiple of 16."""
        return self.microsoft and config.head_dim % 16 == 0


KINDS: Mapping[str, Kind] = {
    kind.name: kind
    for kind in (
        # QMoE has router_weights and a CPU kernel for accuracy_level from 1.31 on.
        Kind("qmoe", 23, 11, "1.31", microsoft=True),
        # 1.22 has no kernel of opset 23; tests/bench/ort_versions.py judged this graph there.
        Kind("if", 21, 10, "1.22", microsoft=True),
        # 1.23 is the first with kernels of opset 23 (the same script; its Attention takes a cache).
        Kind("standard", 23, 11, "1.23", microsoft=False),
    )
}
