"""Text files as token ids: for judging on held-out text, and for calibration."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from emo_export.base.json_file import read_text
from emo_export.errors import EmoExportError
from emo_export.interfaces import Ids

Encode = Callable[[str], Ids]
"""Text -> token ids (T,)."""

MOST_CHARACTERS = 64  # of a token, on average; more of a file is never needed
MARGIN = 64  # tokens, beyond which the end of a text that was cut changes nothing
MOST_NAMED = 8


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


def text_files(places: Sequence[Path]) -> list[Path]:
    """The files named, and the .jsonl and .txt files of the folders named.

    Raises EmoExportError for a folder that holds none.
    """
    found: list[Path] = []
    for place in places:
        if not place.is_dir():
            found.append(place)
            continue
        inside = sorted(p for p in place.iterdir() if p.suffix in (".jsonl", ".txt"))
        if not inside:
            raise EmoExportError(f"{place}: holds no .jsonl or .txt file")
        found += inside
    return found


def sequences_of(files: Sequence[Path], encode: Encode, tokens: int, length: int) -> list[Ids]:
    """The first tokens of each file, up to `tokens` in all, shared evenly among the files.

    Sequences (T,) of at most `length` that don't cross documents. No more of a file is read and
    encoded than that takes. Raises EmoExportError for a file that holds no text.
    """
    chunks: list[Ids] = []
    for file in files:
        left = max(tokens // len(files), 2)
        for document in read_documents(file, most=MOST_CHARACTERS * left):
            for ids in split(_first_ids(document, encode, left), length):
                if left > 1:
                    chunks.append(ids[:left])
                    left -= len(chunks[-1])
            if left <= 1:
                break
    return chunks


def _first_ids(document: str, encode: Encode, count: int) -> Ids:
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


def read_documents(file: Path, most: int | None = None) -> Iterator[str]:
    """Documents of a .txt (one) or .jsonl (objects with "text") file, read as they are asked for.

    Of a .txt at most the first `most` characters are read. Raises EmoExportError for a file that
    can't be read or holds no text.
    """
    empty = True
    try:
        # A byte order mark is no text.
        with file.open(encoding="utf-8-sig", newline="\n") as handle:
            raw = _lines(handle) if file.suffix == ".jsonl" else iter([handle.read(most)])
            for document in raw:
                if isinstance(document, str) and document.strip():
                    empty = False
                    yield document.encode("utf-8", "replace").decode("utf-8")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise EmoExportError(
            f'{file}: is not readable text (.txt) or JSON lines with "text" (.jsonl): {error}'
        ) from error
    if empty:
        raise EmoExportError(f"{file}: holds no text")


def _lines(handle: TextIO) -> Iterator[Any]:
    for line in handle:
        if line.strip():
            yield json.loads(line)["text"]


def named(files: Sequence[Path]) -> str:
    """The names of text files for a sentence; of many, the first few."""
    names = [file.name.encode("utf-8", "replace").decode("utf-8") for file in files]
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more
