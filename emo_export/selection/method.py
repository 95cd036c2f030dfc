"""What an expert is judged by."""

from __future__ import annotations

from enum import StrEnum


class Method(StrEnum):
    """A score; `selection/scores.py` computes them."""

    ROUTER = "router"
    EASY_EP = "easy-ep"
    REAP = "reap"
    RANDOM = "random"

    @property
    def tries_experts(self) -> bool:
        """Whether it needs the experts' outputs."""
        return self in (Method.EASY_EP, Method.REAP)

    @property
    def published(self) -> str:
        """Its name in pruning_metadata.json; the published pruning is called greedy_layerwise."""
        return "greedy_layerwise" if self == Method.ROUTER else self.value.replace("-", "_")
