"""The three graphs: which operators each may use, and which ONNX Runtime opens it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from emo_export.converters.onnx.formats import IntBlocks
from emo_export.model.config import EmoConfig
from emo_export.model.names import Role
from emo_export.model.recipes import ONNXRUNTIME_MIN, ONNXRUNTIME_MIN_PLAIN
from emo_export.model.scheme import QuantScheme


@dataclass(frozen=True)
class Kind:
    """One kind of decoder graph.

    `opset` is that of the standard operators; `microsoft` allows ONNX Runtime's own beside them,
    `plain_attention` none for attention.
    """

    name: str
    opset: int
    ir_version: int
    onnxruntime_min: str
    microsoft: bool
    plain_attention: bool = False

    def uses_gqa(self, config: EmoConfig) -> bool:
        """Tell whether attention is GroupQueryAttention, which takes heads of a multiple of 16."""
        fused = self.microsoft and not self.plain_attention
        return fused and config.head_dim % 16 == 0


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


def kind_of(scheme: QuantScheme, config: EmoConfig, *, plain_attention: bool = False) -> Kind:
    """The kind of a target's graph, and the ONNX Runtime that it needs for this model."""
    kind = KINDS[scheme.spec.graph]
    if kind.name != "if":
        return kind
    kind = replace(kind, plain_attention=plain_attention)
    # The embedding is gathered by standard operators.
    multiplied = (form for slot, form in scheme.formats.items() if slot.role != Role.EMBED)
    if kind.uses_gqa(config) or any(isinstance(f, IntBlocks) and f.bits == 8 for f in multiplied):
        return kind
    return replace(kind, onnxruntime_min=ONNXRUNTIME_MIN_PLAIN)
