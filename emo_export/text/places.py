"""Which text files are meant: files by name, folders with all inside, standard input."""

from __future__ import annotations

import codecs
import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from emo_export.base.scratch import Scratch
from emo_export.errors import EmoExportError

STDIN = Path("-")
JSON_LINES = (".jsonl", ".ndjson")
SNIFFED = 1 << 16  # bytes, by which a file of a folder is text or is not
MOST_NAMED = 8

VENDORED = frozenset(
    "__pycache__ bower_components node_modules site-packages third_party vendor venv".split()
)
"""Folders of what others wrote, or a machine; passed over where they are not named themselves."""


@dataclass(frozen=True)
class Texts:
    """Text files, and what was passed over in folders.

    `not_text` counts files that hold no UTF-8 text, `hidden` hidden files and folders, vendored
    folders and links to folders.
    """

    files: tuple[Path, ...]
    not_text: int = 0
    hidden: int = 0


def find_texts(places: Sequence[Path]) -> Texts:
    """The files named, and every text file of the folders named, in the order of their names.

    Raises EmoExportError for a folder that holds none.
    """
    files: list[Path] = []
    not_text = hidden = 0
    for place in places:
        if not place.is_dir():
            files.append(place)
            continue
        try:
            inside, passed = _walk(place)
            texts = [file for file in inside if _is_text(file)]
        except OSError as error:
            raise EmoExportError(f"{place}: can't be read: {error}") from error
        not_text += len(inside) - len(texts)
        hidden += passed
        if not texts:
            raise EmoExportError(
                f"{place}: holds no text file ({len(inside)} that are not UTF-8 text or are empty, "
                f"{passed} hidden or vendored)"
            )
        files += texts
    return Texts(tuple(files), not_text, hidden)


def _walk(folder: Path) -> tuple[list[Path], int]:
    """The files in a folder and below it, sorted by name; how many entries were passed over."""
    found: list[tuple[str, ...]] = []
    passed = 0
    for root, folders, names in os.walk(folder, onerror=_raise):
        entered = [
            name
            for name in folders
            if not name.startswith(".")
            and name not in VENDORED
            and not Path(root, name).is_symlink()
        ]
        shown = [name for name in names if not name.startswith(".")]
        passed += len(folders) - len(entered) + len(names) - len(shown)
        folders[:] = entered
        above = Path(root).relative_to(folder).parts
        found += [(*above, name) for name in shown]
    return [folder.joinpath(*parts) for parts in sorted(found)], passed


def _raise(error: OSError) -> None:
    raise error


def _is_text(file: Path) -> bool:
    """Whether a file begins with UTF-8 text that is more than white space."""
    if not file.is_file():
        return False
    with file.open("rb") as handle:
        begin = handle.read(SNIFFED)
    try:
        # The last character may be cut, where the file goes on.
        decoder = codecs.getincrementaldecoder("utf-8-sig")()
        text = decoder.decode(begin, final=len(begin) < SNIFFED)
    except UnicodeDecodeError:
        return False
    return "\0" not in text and bool(text.strip())


@contextmanager
def readable_twice(places: Sequence[Path]) -> Iterator[list[Path]]:
    """The same places, with standard input ("-") and pipes copied to files for a while.

    What comes so is JSON lines when its first line is a JSON object, else plain text. Raises
    EmoExportError for standard input named twice.
    """
    if places.count(STDIN) > 1:
        raise EmoExportError('"-", standard input, can be read only once')
    with Scratch("text") as folder:
        yield [
            _copied(place, folder / str(number)) if place == STDIN or place.is_fifo() else place
            for number, place in enumerate(places)
        ]


def _copied(place: Path, folder: Path) -> Path:
    folder.mkdir()
    path = folder / ("stdin" if place == STDIN else place.name)
    try:
        with path.open("wb") as copy:
            if place == STDIN:
                shutil.copyfileobj(sys.stdin.buffer, copy)
            else:
                with place.open("rb") as pipe:
                    shutil.copyfileobj(pipe, copy)
        with path.open("rb") as copied:
            is_json_lines = _is_object(copied.readline(SNIFFED))
    except OSError as error:
        raise EmoExportError(f"{place}: can't be read: {error}") from error
    return path.rename(path.with_name(path.name + JSON_LINES[0])) if is_json_lines else path


def _is_object(line: bytes) -> bool:
    """Whether a line is a JSON object, or the beginning of one too long to tell."""
    line = line.removeprefix(codecs.BOM_UTF8).lstrip()
    if len(line) >= SNIFFED - 8:
        return line.startswith(b'{"')
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def named(files: Sequence[Path]) -> str:
    """The names of text files for a sentence; of many, the first few."""
    names = [legible(file.name) for file in files]
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more


def legible(name: str) -> str:
    """A file name as text that can be encoded; the file system's need not be."""
    return name.encode("utf-8", "replace").decode("utf-8")
