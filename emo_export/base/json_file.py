"""Reading a text, or a JSON object, from a file, with errors that name it.

A file may come from a stranger, so bytes, values and depth are bounded: what is within the bounds
is read in less than a second and 200 MB.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from emo_export.base.plain_file import read_plain
from emo_export.errors import EmoExportError

MOST_BYTES = 16 << 20  # the index of a checkpoint of 100 000 tensors has 10 MB
MOST_VALUES = 1_200_000  # and keys; the tokenizer of Llama 3 has 1.1 million
MOST_DEPTH = 64


def read_text(path: Path, most: int = MOST_BYTES) -> str:
    """The text of a UTF-8 file, without a byte order mark, which some editors put in front.

    Raises EmoExportError when it is missing, unreadable, no file, of more than `most` bytes, or not
    UTF-8.
    """
    try:
        return read_plain(path, most).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise EmoExportError(f"{path} is not UTF-8: {_place(error)}") from error


def read_json(path: Path, most: int = MOST_BYTES) -> dict[str, Any]:
    """Parse a file that holds one JSON object.

    Raises EmoExportError as `read_text` and `parse_object` do.
    """
    return parse_object(read_text(path, most), str(path))


def parse_object(text: str | bytes, where: str) -> dict[str, Any]:
    """Parse one JSON object; `where` is what holds it, for the error.

    Raises EmoExportError when it is no JSON, something else than an object, an object with a key
    twice, or has more than MOST_VALUES values and keys or MOST_DEPTH of them in each other.
    """
    try:
        if isinstance(text, bytes):
            text = text.decode("utf-8")
        count = sum(map(text.count, ",:[{"))
        if count > MOST_VALUES:
            raise EmoExportError(
                f"{where}: holds up to {count} values, more than the {MOST_VALUES} that are read"
            )
        value = json.loads(text, object_pairs_hook=_distinct)
    except UnicodeDecodeError as error:
        raise EmoExportError(f"{where} is not JSON: {_place(error)}") from error
    except (ValueError, RecursionError) as error:
        raise EmoExportError(f"{where} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise EmoExportError(f"{where} holds {type(value).__name__}, expected an object")
    _check_depth(value, where)
    return value


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the key {twice!r:.200} is there twice")
    return found


def _check_depth(value: Any, where: str) -> None:
    """Level by level: whoever goes into it by recursion later is safe."""
    level = [value]
    for _ in range(MOST_DEPTH):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return
    raise EmoExportError(f"{where} has values in each other deeper than {MOST_DEPTH}")


def _place(error: UnicodeDecodeError) -> str:
    """Not the error's own words, which Python makes of all bytes."""
    return f"byte {error.start} is 0x{error.object[error.start]:02x} ({error.reason})"
