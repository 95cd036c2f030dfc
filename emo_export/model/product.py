"""The model that is written: its own config and expert numbers, and where each weight comes from.

A `Source` is a checkpoint, or a package that is read back. Keeping some experts of each layer makes
a product of it, as the published pruning does: kept in ascending order, shared ones last, the
router cut to their rows. Which ones may be told layer by layer, while the weights go by; how many
is known from the first.
Keeping all of them is the identity.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from emo_export.errors import BadValueError, EmoExportError
from emo_export.interfaces import F32
from emo_export.model.config import EmoConfig, LayerShape
from emo_export.model.finite import check_finite
from emo_export.model.names import Role, Slot, row_spans, slots
from emo_export.model.safetensors_file import rounded
from emo_export.model.source import Source


@dataclass(frozen=True)
class Product:
    """`raw` is the product's config.json, `config` the same checked.

    `kept` has for each layer the source's numbers of its experts, in the product's order. Where
    they are chosen while the weights go by (`awaiting`), a layer is in it once `keep` was called.
    """

    source: Source
    raw: Mapping[str, Any]
    config: EmoConfig
    kept: dict[int, tuple[int, ...]]
    method: str = ""
    """How its experts were chosen, as pruning_metadata.json calls it."""
    scales: dict[int, float] = field(default_factory=dict)
    """By layer, what the down matrices of its routed experts are multiplied by (not there: 1)."""

    @classmethod
    def whole(cls, source: Source) -> Product:
        """Every expert of every layer."""
        kept = {i: tuple(range(layer.num_experts)) for i, layer in enumerate(source.config.layers)}
        return cls(source, source.raw, source.config, kept)

    @classmethod
    def awaiting(cls, source: Source, counts: Sequence[int], method: str = "") -> Product:
        """So many experts of each layer, which ones is still to be told to `keep`.

        Raises EmoExportError for a count that a layer can't have.
        """
        layers = source.config.layers
        if len(counts) != len(layers):
            raise EmoExportError(f"{len(counts)} counts of experts, the model has {len(layers)}")
        for index, (layer, count) in enumerate(zip(layers, counts, strict=True)):
            least = 0 if layer.is_dense else max(1, len(layer.forced))
            if not least <= count <= layer.num_experts:
                raise EmoExportError(
                    f"{count} experts cannot be kept in layer {index}: it has {layer.num_experts}, "
                    f"of which {least} must stay"
                )
        raw = _pruned(source.raw, source.config, counts)
        config = EmoConfig.from_dict(raw, str(source.path / "config.json"))
        dense: dict[int, tuple[int, ...]] = {i: () for i, lay in enumerate(layers) if lay.is_dense}
        return cls(source, raw, config, dense, method)

    @classmethod
    def keeping(
        cls,
        source: Source,
        kept: Sequence[Sequence[int]],
        scales: Mapping[int, float] | None = None,
    ) -> Product:
        """Only these experts of each layer, by the source's numbers; `scales` as in a product.

        Raises EmoExportError for numbers that are not there or named twice, and where an expert
        that every token uses is missing.
        """
        product = cls.awaiting(source, [len(experts) for experts in kept])
        for layer, experts in enumerate(kept):
            product.keep(layer, experts, (scales or {}).get(layer, 1.0))
        whole = cls.whole(source)
        return whole if product.kept == whole.kept else product

    def keep(self, layer: int, experts: Sequence[int], scale: float = 1.0) -> None:
        """Tell which experts of a layer are kept, in any order, as many as the config says.

        `scale`: of what its routed experts give.

        Raises EmoExportError as `keeping` does.
        """
        shape, count = self.source.config.layers[layer], self.config.layers[layer].num_experts
        chosen = set(experts)
        if len(experts) != count or len(chosen & set(range(shape.num_experts))) != count:
            raise EmoExportError(
                f"kept experts of layer {layer}: expected {count} different numbers below "
                f"{shape.num_experts}, found {list(experts)}"
            )
        if missing := set(shape.forced) - chosen:
            raise EmoExportError(
                f"kept experts of layer {layer}: {sorted(missing)} must stay, since every "
                "token uses them"
            )
        self.kept[layer] = product_order(shape, experts)
        if scale != 1:
            self.scales[layer] = scale

    @property
    def is_whole(self) -> bool:
        """Nothing is left out, so that its config.json is the source's."""
        return self.raw == self.source.raw

    @property
    def path(self) -> Path:
        """The source's folder, with the tokenizer and what else goes along unchanged."""
        return self.source.path

    @property
    def pruning(self) -> Mapping[str, Any] | None:
        """What was left out, with the published keys; of a whole product, what its source says."""
        if self.is_whole:
            return self.source.pruning
        return {
            "original_model": self.path.resolve().name,
            "prune_keep_k": self.config.num_experts,
            "num_shared_experts": self.config.num_shared_experts,
            "pruning_method": self.method,
            "experts_kept_per_layer": self.all_kept,
            **({"routed_scale_per_layer": self.all_scales} if self.scales else {}),
        }

    @property
    def all_kept(self) -> list[list[int]]:
        """The source's numbers of the experts of each layer, all of which have been chosen."""
        return [list(self.kept[layer]) for layer in range(self.config.num_hidden_layers)]

    @property
    def all_scales(self) -> list[float]:
        """What the down matrices of each layer's routed experts are multiplied by."""
        return [self.scales.get(layer, 1.0) for layer in range(self.config.num_hidden_layers)]

    @property
    def nbytes(self) -> int:
        """Bytes of all its tensors as the source stores them, whichever experts are kept."""
        pieces = (
            (slot, span) for slot in slots(self.config) for span in row_spans(slot, self.config)
        )
        return sum(self.source.at(slot).row_bytes * (end - start) for slot, (start, end) in pieces)

    def origin(self, slot: Slot) -> Slot:
        """The source's slot from which a slot of the product comes; a tied head is the embedding.

        A router keeps its slot: its rows are those of the kept experts.
        """
        if slot.role == Role.HEAD and self.config.tie_word_embeddings:
            return Slot(Role.EMBED)
        if slot.expert < 0:
            return slot
        return replace(slot, expert=self.kept[slot.layer][slot.expert])

    def place_of(self, slot: Slot) -> Slot | None:
        """The product's slot to which a slot of the source goes; None for what is left out."""
        if slot.expert < 0:
            return slot
        kept = self.kept[slot.layer]
        return replace(slot, expert=kept.index(slot.expert)) if slot.expert in kept else None

    def rows(self, slot: Slot, start: int, stop: int) -> F32:
        """Rows start..stop of a slot as float32 (stop - start, C), read now.

        Raises EmoExportError for a file that ends early, and for a value that is not finite.
        """
        tensor = self.source.at(self.origin(slot))
        if slot.role != Role.ROUTER:
            return self.scaled(slot, tensor.rows(start, stop), tensor.dtype, start)
        chosen = np.array(self.kept[slot.layer][start:stop])
        first = int(chosen.min())
        rows: F32 = tensor.rows(first, int(chosen.max()) + 1)[chosen - first]
        return rows

    def scaled(self, slot: Slot, rows: F32, dtype: str, start: int = 0) -> F32:
        """Rows of the source as the product has them, in values that the source's type can hold.

        So an export is the same with a pruned checkpoint in between. `start` is the first of them.
        Raises EmoExportError where one becomes infinite.
        """
        if slot.role != Role.DOWN or slot.layer not in self.scales:
            return rows
        if slot.expert in self.config.layers[slot.layer].forced:
            return rows
        factor = np.float32(self.scales[slot.layer])
        with np.errstate(over="ignore"):
            out = rounded(rows * factor, dtype)
        try:
            check_finite(out, f"is what becomes of it times {factor}, in {dtype}")
        except BadValueError as error:
            raise EmoExportError(f"{self.origin(slot).name}: {error.below(start)}") from error
        return out


def _pruned(raw: Mapping[str, Any], config: EmoConfig, counts: Sequence[int]) -> Mapping[str, Any]:
    """config.json of the product, with the keys that the published pruning changes."""
    if list(counts) == [layer.num_experts for layer in config.layers]:
        return raw
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
        always = [layer.always_active_experts for layer in config.layers]
        out["always_active_experts_per_layer"] = [
            list(numbers if count == layer.num_experts else range(len(numbers)))
            for layer, count, numbers in zip(config.layers, counts, always, strict=True)
        ]
    return out


def product_order(shape: LayerShape, experts: Sequence[int]) -> tuple[int, ...]:
    """Kept experts as the published pruning orders them: ascending, shared ones last.

    Always active ones come first, so that the config is known before the others are chosen. A
    layer of which all are kept stays as it is.
    """
    first = shape.always_active_experts if len(experts) < shape.num_experts else ()
    return (*first, *sorted(set(experts) - set(first)))
