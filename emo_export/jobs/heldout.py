"""The held-out text that a job judges by."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from emo_export.exporting.steps import Steps
from emo_export.model.product import Product
from emo_export.text.documents import FIELD
from emo_export.text.places import find_texts

if TYPE_CHECKING:
    from emo_export.reference.probes import Probes
    from emo_export.text.tokenizer import Encode

TOKENS = 4096
"""How many of them at most, where nothing else is asked for."""


def choose_heldout(
    product: Product,
    given: Sequence[Path],
    steps: Steps,
    tokens: int = TOKENS,
    field: str = FIELD,
    context: int | None = None,
    encode: Encode | None = None,
) -> Probes:
    """Probes of the files and folders named, or of those of a checkpoint's heldout/.

    `field` holds the text in JSON lines that were named.
    """
    from emo_export.reference.probes import choose_probes

    inside = product.path / "heldout"
    texts = find_texts(given or ([inside] if inside.is_dir() else []))
    steps.on_texts(texts)
    return choose_probes(product, texts.files, tokens, context, field if given else FIELD, encode)
