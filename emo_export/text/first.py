"""The first tokens of text files: what held-out text is judged on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from emo_export.interfaces import Ids
from emo_export.text.documents import FIELD, read_documents
from emo_export.text.tokenizer import Encode

MOST_CHARACTERS = 64  # of a token, on average; more of a file is never needed
MARGIN = 64  # tokens, beyond which the end of a text that was cut changes nothing


def sequences_of(
    files: Sequence[Path], encode: Encode, tokens: int, length: int, field: str = FIELD
) -> list[Ids]:
    """The first tokens of each file, up to `tokens` in all, shared evenly among the files.

    Sequences (T,) of at most `length` that don't cross documents. No more of a file is read and
    encoded than that takes. Raises EmoExportError for a file that holds no text.
    """
    chunks: list[Ids] = []
    for file in files:
        left = max(tokens // len(files), 2)
        for document in read_documents(file, MOST_CHARACTERS * left, field):
            for ids in split(first_ids(document.text, encode, left), length):
                if left > 1:
                    chunks.append(ids[:left])
                    left -= len(chunks[-1])
            if left <= 1:
                break
    return chunks


def first_ids(document: str, encode: Encode, count: int) -> Ids:
    """The first `count` token ids of a document, or all; not much more of it is encoded."""
    size = 8 * count + MARGIN
    while True:
        ids = encode(document[:size])
        # The last few tokens of a text that was cut may not be those of the whole.
        if size >= len(document) or len(ids) >= count + MARGIN:
            return ids[:count]
        size *= 4


def split(ids: Ids, size: int) -> list[Ids]:
    """Pieces of at most `size` tokens; one of a single token is dropped."""
    return [ids[s : s + size] for s in range(0, len(ids), size) if len(ids[s : s + size]) > 1]
