"""What an expert is judged by."""

from __future__ import annotations

from enum import StrEnum

from emo_export.errors import EmoExportError


class Method(StrEnum):
    """A score; `selection/scores.py` computes them."""

    ROUTER = "router"
    EASY_EP = "easy-ep"
    REAP = "reap"
    RANDOM = "random"

    @classmethod
    def parse(cls, name: str) -> Method:
        """By name. Raises EmoExportError for another."""
        if name not in list(cls):
            known = ", ".join(cls)
            raise EmoExportError(f"method {name}: unknown; there are {known}")
        return cls(name)

    @property
    def tries_experts(self) -> bool:
        """Whether it needs the experts' outputs."""
        return self in (Method.EASY_EP, Method.REAP)

    @property
    def published(self) -> str:
        """Its name in pruning_metadata.json; the published pruning is called greedy_layerwise."""
        return "greedy_layerwise" if self == Method.ROUTER else self.value.replace("-", "_")
