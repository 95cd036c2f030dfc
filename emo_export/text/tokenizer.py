"""The tokenizer of a checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from emo_export.base.json_file import read_text
from emo_export.errors import EmoExportError
from emo_export.interfaces import Ids

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
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_str(read_text(path))
    except Exception as error:  # the library raises plain Exception
        raise EmoExportError(f"{path}: is not a tokenizer.json ({error})") from error
    largest = max(tokenizer.get_vocab(True).values(), default=-1)
    if largest >= vocab_size:
        raise EmoExportError(f"{path}: token id {largest} is not below vocab_size {vocab_size}")
    # A file may carry the settings of a training run; the model itself reads all of a text.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return lambda text: np.array(
        tokenizer.encode(text, add_special_tokens=False).ids, dtype=np.int64
    )


def why_no_tokenizer(folder: Path) -> str:
    """What a folder without tokenizer.json lacks, and how to make it of what is there."""
    if not all((folder / name).is_file() for name in PARTS):
        return "has no tokenizer.json"
    return (
        f"has no tokenizer.json; {' and '.join(PARTS)} alone don't say how text is split. If it is "
        f"split as GPT-2 does, make tokenizer.json in that folder, with all of the model's special "
        f"tokens in the list: {CONVERSION}; the released EMO's is in allenai/dolma2-tokenizer"
    )
