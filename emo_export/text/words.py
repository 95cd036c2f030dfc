"""Splits a text into the words of byte-level BPE, by the known splits alone.

Python's own regular expressions do it, on an outline of the text in which few characters are left.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import cache

from emo_export.text.character_kinds import LETTER, LONG_S, MARK, NUMBER, outline
from emo_export.text.splits import SPLITS, Shape, Step

Words = Callable[[str], list[str]]
"""Text -> its words, which joined are the text."""

_CLASSES = {
    r"\p{L}": f"A-Za-z{LETTER}{LONG_S}",
    r"\p{N}": f"0-9{NUMBER}",
    r"\p{M}": MARK,
    r"\s": r"\t-\r ",  # not Python's \s, which has four separators more
}


def words_of(shape: Shape) -> Words | None:
    """What splits as a pre-tokenizer of this shape (`splits.shape`); None: it is not known."""
    if not all(step in _known() for step in shape):
        return None
    patterns = [re.compile(_for_outlines(step.regex)) for step in shape if step.regex is not None]

    def words(text: str) -> list[str]:
        spans = [(0, len(text))] if text else []
        kinds = outline(text)
        for pattern in patterns:
            # Each step sees a word of the one before as a text of its own.
            spans = [
                (start + begin, start + end)
                for start, stop in spans
                for begin, end in _parts(pattern, kinds[start:stop])
            ]
        return [text[start:stop] for start, stop in spans]

    return words


@cache
def _known() -> frozenset[Step]:
    return frozenset(step for split in SPLITS for form in split.shapes for step in form)


def _for_outlines(regex: str) -> str:
    r"""The same in Python's syntax: `\p{L}` and `\s` as the characters that an outline has."""
    made, inside = [], False
    for token in re.findall(r"\\p\{\w\}|\\.|.", regex, re.DOTALL):
        if token in "[]":
            inside = token == "["
        if token == r"\S":
            made.append(rf"[^{_CLASSES[chr(92) + 's']}]")
        elif token in _CLASSES:
            made.append(_CLASSES[token] if inside else f"[{_CLASSES[token]}]")
        else:
            made.append(token)
    return "".join(made)


def _parts(pattern: re.Pattern[str], text: str) -> Iterator[tuple[int, int]]:
    """Where each match lies, and each piece between two of them."""
    done = 0
    for found in pattern.finditer(text):
        if done < found.start():
            yield done, found.start()
        if found.start() < found.end():
            yield found.span()
        done = found.end()
    if done < len(text):
        yield done, len(text)
