"""Types that were chosen for a budget, as a table and in words."""

from __future__ import annotations

from emo_export.model.recipes import LayerTypes


def shown_types(types: LayerTypes) -> str:
    """`q6_k`, or `q6_k in 0-3, q4_k in 4` where layers differ."""
    if isinstance(types, str):
        return types
    spans: list[tuple[str, int, int]] = []
    for layer, name in enumerate(types):
        if spans and spans[-1][0] == name:
            spans[-1] = (name, spans[-1][1], layer)
        else:
            spans.append((name, layer, layer))
    return ", ".join(
        f"{name} in {first}" + (f"-{last}" if last > first else "") for name, first, last in spans
    )
