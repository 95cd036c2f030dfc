"""The three graphs: which operators each may use, and which ONNX Runtime opens it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from emo_export.config import EmoConfig
from emo_export.recipes import ONNXRUNTIME_MIN


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
        Kind("qmoe", 23, 11, ONNXRUNTIME_MIN["qmoe"], microsoft=True),
        # 1.22 has no kernel of opset 23.
        Kind("if", 21, 10, ONNXRUNTIME_MIN["if"], microsoft=True),
        # Attention takes a cache from opset 23 on.
        Kind("standard", 23, 11, ONNXRUNTIME_MIN["standard"], microsoft=False),
    )
}
