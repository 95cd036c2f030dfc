"""Letters, numbers and marks of Unicode 16, whatever Unicode this Python knows.

The regular expressions that split text for BPE ask for them, and so do Oniguruma's in the
tokenizers library, whose answers `python -m tests.text.character_kinds` writes to the data file.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from functools import cache
from importlib.resources import files

DATA = "character_kinds.json"
LETTER, NUMBER, MARK, SPACE, OTHER = "\u00aa", "\u00b2", "\u0300", "\v", "\u00a7"
"""What stands for a character beyond ASCII of each kind; the last for one of none."""
LONG_S = "\u017f"  # a letter, which is an s where case is ignored
SPACES = "\u0085\u00a0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(
    map(chr, range(0x2000, 0x200B))
)
"""White space beyond ASCII, all that Unicode has had since version 6.3."""


class _Kinds(dict[int, str]):
    """Code point -> what stands for it, looked up when it is first asked for."""

    def __missing__(self, code: int) -> str:
        starts, kinds = _runs()
        self[code] = found = kinds[bisect_right(starts, code) - 1]
        return found


def outline(text: str) -> str:
    """The text with each character beyond ASCII replaced by one that stands for its kind.

    As long as the text: what a regular expression finds in it lies at the same place there.
    """
    if text.isascii():
        return text
    same = {code: chr(code) for code in (*range(128), ord(LONG_S))}
    return text.translate(_Kinds(same | {ord(space): SPACE for space in SPACES}))


@cache
def _runs() -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Where each run of characters of one kind begins, and which kind that is."""
    stands_for = {"L": LETTER, "N": NUMBER, "M": MARK, "": OTHER}
    runs = json.loads(files(__package__).joinpath(DATA).read_text("utf-8"))["runs"]
    return tuple(start for start, _ in runs), tuple(stands_for[kind] for _, kind in runs)
