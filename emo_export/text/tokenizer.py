"""The tokenizer of a checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from emo_export.errors import EmoExportError
from emo_export.interfaces import Ids
from emo_export.text.tokenizer_file import library_errors, open_library

Encode = Callable[[str], Ids]
"""Text -> token ids (T,)."""

PARTS = ("vocab.json", "merges.txt")
CONVERSION = (
    'python -c "from tokenizers.implementations import ByteLevelBPETokenizer as T; '
    "t = T('vocab.json', 'merges.txt'); t.add_special_tokens(['<|endoftext|>']); "
    "t.save('tokenizer.json')\""
)
"""Makes a tokenizer.json of PARTS, whose text is split as GPT-2 splits it."""


def open_tokenizer(folder: Path, vocab_size: int) -> Encode | None:
    """The tokenizer of a checkpoint folder, or None when it has no tokenizer.json.

    Raises EmoExportError for one that is damaged or has more tokens than the model.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        return None
    tokenizer = open_library(path)
    largest = max(tokenizer.get_vocab(True).values(), default=-1)
    if largest >= vocab_size:
        raise EmoExportError(f"{path}: token id {largest} is not below vocab_size {vocab_size}")

    def encode(text: str) -> Ids:
        with library_errors(path):
            return np.array(tokenizer.encode(text, add_special_tokens=False).ids, dtype=np.int64)

    return encode


def why_no_tokenizer(folder: Path) -> str:
    """What a folder without tokenizer.json lacks, and how to make it of what is there."""
    if not all((folder / name).is_file() for name in PARTS):
        return "has no tokenizer.json"
    return (
        f"has no tokenizer.json; {' and '.join(PARTS)} alone don't say how text is split. If it is "
        f"split as GPT-2 does, make tokenizer.json in that folder, with all of the model's special "
        f"tokens in the list: {CONVERSION}; the released EMO's is in allenai/dolma2-tokenizer"
    )
