"""How many experts of each layer are kept, as export counts them, and the product.

Which experts are kept makes no difference to any size, so the lowest numbers stand for them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress

from emo_export.errors import EmoExportError
from emo_export.model.checkpoint import Checkpoint
from emo_export.model.config import EmoConfig
from emo_export.model.product import Product
from emo_export.selection.keep import Keep

ALL = "all"
KEEPS = (ALL, "1/2", "1/4", "1/8")

Counts = tuple[int, ...]
"""Experts of each layer, shared ones included."""


def kept_counts(texts: Sequence[str], config: EmoConfig) -> list[Counts]:
    """The counts asked for, most experts first, equal ones once; by default those of KEEPS.

    A text is `all`, or what `export --keep` takes. Raises EmoExportError as `Keep` does; of the
    defaults, those that the model can't have are left out.
    """
    if not texts:
        return _ordered(_possible(config))
    return _ordered(_counts(text, config) for text in texts)


def _possible(config: EmoConfig) -> Iterator[Counts]:
    for text in KEEPS:
        with suppress(EmoExportError):
            yield _counts(text, config)


def _counts(text: str, config: EmoConfig) -> Counts:
    if text.strip().lower() == ALL:
        return tuple(layer.num_experts for layer in config.layers)
    return tuple(Keep.parse(text).counts(config))


def _ordered(found: Iterator[Counts]) -> list[Counts]:
    return sorted(set(found), key=lambda counts: (max(counts), sum(counts)), reverse=True)


def keeping(source: Checkpoint, counts: Counts) -> Product:
    """The product with so many experts in each layer."""
    kept = []
    for layer, count in zip(source.config.layers, counts, strict=True):
        free = layer.routed[: count - len(layer.forced)]
        kept.append(sorted((*layer.forced, *free)))
    return Product.keeping(source, kept)
