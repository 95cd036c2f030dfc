"""The model that is written: its own config and expert numbers, and where each weight comes from.

A `Checkpoint` is the source. Keeping some experts of each layer makes a product of it, as the
published pruning does: kept in ascending order, shared ones last, the router cut to their rows.
Keeping all of them is the identity.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from emo_export.errors import EmoExportError
from emo_export.interfaces import F32
from emo_export.model.checkpoint import Checkpoint
from emo_export.model.config import EmoConfig
from emo_export.model.names import Role, Slot, row_spans, slots


@dataclass(frozen=True)
class Product:
    """`raw` is the product's config.json, `config` the same checked.

    `kept` has for each layer the source's numbers of its experts, in the product's order.
    """

    source: Checkpoint
    raw: Mapping[str, Any]
    config: EmoConfig
    kept: tuple[tuple[int, ...], ...]

    @classmethod
    def whole(cls, source: Checkpoint) -> Product:
        """Every expert of every layer."""
        kept = tuple(tuple(range(layer.num_experts)) for layer in source.config.layers)
        return cls(source, source.raw, source.config, kept)

    @classmethod
    def keeping(cls, source: Checkpoint, kept: Sequence[Sequence[int]]) -> Product:
        """Only these experts of each layer, by the source's numbers.

        Raises EmoExportError for numbers that are not ascending or not there, and where an expert
        that every token uses is missing.
        """
        layers = source.config.layers
        if len(kept) != len(layers):
            raise EmoExportError(f"{len(kept)} layers of kept experts, the model has {len(layers)}")
        for index, (layer, experts) in enumerate(zip(layers, kept, strict=True)):
            if list(experts) != sorted(set(experts) & set(range(layer.num_experts))):
                raise EmoExportError(
                    f"kept experts of layer {index}: expected ascending numbers below "
                    f"{layer.num_experts}, found {list(experts)}"
                )
            if missing := set(layer.forced) - set(experts):
                raise EmoExportError(
                    f"kept experts of layer {index}: {sorted(missing)} must stay, since every "
                    "token uses them"
                )
        whole = cls.whole(source)
        chosen = tuple(tuple(experts) for experts in kept)
        if chosen == whole.kept:
            return whole
        raw = _pruned(source.raw, source.config, chosen)
        return cls(source, raw, EmoConfig.from_dict(raw, str(source.path / "config.json")), chosen)

    @property
    def path(self) -> Path:
        """The source's folder, with the tokenizer and what else goes along unchanged."""
        return self.source.path

    @property
    def pruning(self) -> Mapping[str, Any] | None:
        """What the source says of its own pruning."""
        return self.source.pruning

    @property
    def nbytes(self) -> int:
        """Bytes of all its tensors as the source stores them."""
        pieces = (
            (slot, span) for slot in slots(self.config) for span in row_spans(slot, self.config)
        )
        return sum(self.row_bytes(slot) * (stop - start) for slot, (start, stop) in pieces)

    def origin(self, slot: Slot) -> Slot:
        """The source's slot from which a slot of the product comes; a tied head is the embedding.

        A router keeps its slot: its rows are those of the kept experts.
        """
        if slot.role == Role.HEAD and self.config.tie_word_embeddings:
            return Slot(Role.EMBED)
        if slot.expert < 0:
            return slot
        return replace(slot, expert=self.kept[slot.layer][slot.expert])

    def row_bytes(self, slot: Slot) -> int:
        """Bytes of a row of a slot in the source's file."""
        return self.source.at(self.origin(slot)).row_bytes

    def rows(self, slot: Slot, start: int, stop: int) -> F32:
        """Rows start..stop of a slot as float32 (stop - start, C), read now.

        Raises EmoExportError for a file that ends early, and for a value that is not finite.
        """
        tensor = self.source.at(self.origin(slot))
        if slot.role != Role.ROUTER:
            return tensor.rows(start, stop)
        chosen = np.array(self.kept[slot.layer][start:stop])
        whole = tensor.rows(int(chosen[0]), int(chosen[-1]) + 1)
        return whole if len(whole) == len(chosen) else whole[chosen - chosen[0]]


def _pruned(
    raw: Mapping[str, Any], config: EmoConfig, kept: Sequence[Sequence[int]]
) -> dict[str, Any]:
    """config.json of the product, with the keys that the published pruning changes."""
    counts = [len(experts) for experts in kept]
    sparse = [count for count in counts if count]
    out = {**raw, "num_experts": max(sparse, default=0)}
    if raw.get("num_experts_per_layer") is not None or len(set(counts)) > 1:
        out["num_experts_per_layer"] = counts
        shared = [layer.num_shared_experts for layer in config.layers]
        if len({n for n, count in zip(shared, counts, strict=True) if count}) > 1:
            out["num_shared_experts_per_layer"] = shared
    out["num_experts_per_tok"] = min([config.num_experts_per_tok, *sparse])
    if any(layer.always_active_experts for layer in config.layers):
        out.pop("always_active_experts", None)
        out["always_active_experts_per_layer"] = [
            [list(experts).index(expert) for expert in layer.always_active_experts]
            for layer, experts in zip(config.layers, kept, strict=True)
        ]
    return out
