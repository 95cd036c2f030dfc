"""What every runtime checks before it hands token ids to its engine."""

from __future__ import annotations

import numpy as np

from emo_export.errors import EmoExportError
from emo_export.interfaces import Ids


def check_ids(ids: Ids, vocab_size: int, length: int, context_length: int) -> None:
    """Refuse ids (T,) that an engine with `length` tokens in its cache cannot take.

    Raises EmoExportError for another shape or type, for ids outside the vocabulary, and for a
    sequence that would exceed `context_length`.
    """
    if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer) or len(ids) == 0:
        raise EmoExportError(f"token ids are {ids.dtype} of shape {ids.shape}, expected int64 (T,)")
    if ids.min() < 0 or ids.max() >= vocab_size:
        bad = ids[(ids < 0) | (ids >= vocab_size)][0]
        raise EmoExportError(f"token {bad} is not in a vocabulary of {vocab_size}")
    if length + len(ids) > context_length:
        raise EmoExportError(
            f"{len(ids)} tokens after {length} exceed the context of {context_length} tokens"
        )
