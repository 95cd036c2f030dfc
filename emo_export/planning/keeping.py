"""How many experts of each layer are kept: counts as the user writes them, and the product.

Which experts are kept makes no difference to any size, so the lowest numbers stand for them.
"""

from __future__ import annotations

from emo_export.errors import EmoExportError
from emo_export.model.checkpoint import Checkpoint
from emo_export.model.config import EmoConfig
from emo_export.model.product import Product
from emo_export.selection.keep import Keep

KEEPS = ("all", "1/2", "1/4", "1/8")


def kept_count(text: str, config: EmoConfig) -> int:
    """`all`, `16`, `1/4` or `25%` -> experts of the largest layer that stay, shared ones included.

    A fraction is rounded up. Raises EmoExportError for anything else, and for none or too many.
    """
    most = max(layer.num_experts for layer in config.layers)
    count = most if text.strip().lower() == "all" else Keep.parse(text).of(most)
    if count > most:
        raise EmoExportError(f"--keep {text}: the model has layers of at most {most} experts")
    return count


def keeping(source: Checkpoint, count: int) -> Product:
    """The product with `count` experts in each layer, or all of a smaller one.

    Raises EmoExportError where more than that are used by every token.
    """
    kept = []
    for index, layer in enumerate(source.config.layers):
        free = min(count, layer.num_experts) - len(layer.forced)
        if free < 0:
            raise EmoExportError(
                f"--keep {count}: every token uses {len(layer.forced)} experts of layer {index}, "
                "which must stay; keep more"
            )
        kept.append(sorted((*layer.forced, *layer.routed[:free])))
    return Product.keeping(source, kept)
