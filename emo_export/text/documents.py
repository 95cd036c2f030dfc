"""The documents of a text file, read as they are asked for."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import StringIO, TextIOWrapper
from pathlib import Path
from typing import Any, TextIO

from emo_export.base.json_file import parse_object
from emo_export.base.plain_file import open_plain
from emo_export.errors import EmoExportError
from emo_export.text.places import JSON_LINES

FIELD = "text"
LONGEST_LINE = 16 << 20
"""Characters of a line of JSON, which is parsed as a whole."""


@dataclass(frozen=True)
class Document:
    """Text of a file, or of its `line` (from 1; 0: the file is one document)."""

    line: int
    text: str


def read_documents(file: Path, most: int | None = None, field: str = FIELD) -> Iterator[Document]:
    """The documents that are not empty, of each at most the first `most` characters.

    A .jsonl or .ndjson file holds an object a line, with the text as `field`; any other file is
    one document of UTF-8. A byte order mark is no text, and every end of a line is a line feed.
    Raises EmoExportError for a file that can't be read, is not text or holds none.
    """
    return _read(file, field, lambda handle: iter([handle.read(-1 if most is None else most)]))


def read_blocks(file: Path, size: int, field: str = FIELD) -> Iterator[Document]:
    """The same documents in blocks of at most `size` characters, cut at the end of a line or word.

    No more than a block is held of a plain text, nor more than a line of JSON lines.
    """
    return _read(file, field, lambda handle: _blocks(handle, size))


def _read(file: Path, field: str, cut: Callable[[TextIO], Iterator[str]]) -> Iterator[Document]:
    empty = True
    texts = _json_lines if file.suffix.lower() in JSON_LINES else _plain
    try:
        for document in texts(file, field, cut):
            if document.text.strip():
                empty = False
                yield document
    except UnicodeDecodeError as error:
        raise EmoExportError(
            f"{file}: is not readable text: byte 0x{error.object[error.start]:02x} is not UTF-8 "
            "here; convert the file, as with iconv -t UTF-8"
        ) from error
    except OSError as error:
        raise EmoExportError(f"{file}: is not readable: {error}") from error
    if empty:
        raise EmoExportError(f"{file}: holds no text")


def _plain(file: Path, field: str, cut: Callable[[TextIO], Iterator[str]]) -> Iterator[Document]:
    with TextIOWrapper(open_plain(file), encoding="utf-8-sig") as handle:
        for text in cut(handle):
            if "\0" in text:
                raise EmoExportError(f"{file}: is not readable text: it holds zero bytes")
            yield Document(0, text)


def _json_lines(
    file: Path, field: str, cut: Callable[[TextIO], Iterator[str]]
) -> Iterator[Document]:
    number = 0
    # A line ends at a line feed alone: JSON takes a carriage return for white space.
    with TextIOWrapper(open_plain(file), encoding="utf-8-sig", newline="\n") as handle:
        while line := handle.readline(LONGEST_LINE):
            number += 1
            if len(line) == LONGEST_LINE:
                raise EmoExportError(
                    f"{file}: line {number} has {LONGEST_LINE >> 20} million characters or more; "
                    "JSON lines hold one document each: split it, or give it as plain text"
                )
            if line.strip():
                for text in cut(StringIO(_field(file, number, line, field))):
                    yield Document(number, text)


def _field(file: Path, number: int, line: str, field: str) -> str:
    """The text of a line; empty for null."""
    content = parse_object(line, f"{file}: line {number}")
    if field not in content:
        raise EmoExportError(
            f'{file}: line {number} has no "{field}" but {_some(content)}; '
            "name the field that holds the text with --field"
        )
    text = content[field]
    if not isinstance(text, str | None):
        raise EmoExportError(
            f'{file}: line {number}: "{field}" is a {type(text).__name__}, not text'
        )
    text = (text or "").encode("utf-8", "replace").decode("utf-8")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _some(content: dict[str, Any]) -> str:
    names = [json.dumps(name[:40]) for name in content] or ["nothing"]
    return ", ".join(names[:8]) + (", …" if len(names) > 8 else "")


def _blocks(handle: TextIO, size: int) -> Iterator[str]:
    text = ""
    while True:
        more = handle.read(size - len(text))
        text += more
        if len(text) < size:
            yield text
            return
        end = text.rfind("\n", size // 2) + 1 or text.rfind(" ", max(1, size // 2))
        end = end if end > 0 else size
        yield text[:end]
        text = text[end:]
