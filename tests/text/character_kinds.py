"""Writes which characters are letters, numbers and marks to the tokenizers library.

    python -m tests.text.character_kinds

The file says which Unicode that is. A test compares it.
"""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Regex, pre_tokenizers

from emo_export.text import character_kinds

FILE = Path(character_kinds.__file__).with_name(character_kinds.DATA)
UNICODE = "16.0.0"  # of the Oniguruma in tokenizers 0.22 and 0.23
CODES = [code for code in range(0x110000) if not 0xD800 <= code < 0xE000]


def matching(regex: str) -> set[int]:
    """The code points that a regular expression of the tokenizers library matches."""
    cut = pre_tokenizers.Split(Regex(regex), "removed")
    found: set[int] = set()
    for start in range(0, len(CODES), 1000):
        block = CODES[start : start + 1000]
        left = "".join(piece for piece, _ in cut.pre_tokenize_str("".join(map(chr, block))))
        found |= set(block) - set(map(ord, left))
    return found


def runs() -> list[tuple[int, str]]:
    """Where runs of characters of one kind begin, and their kind: L, N, M or none."""
    kinds = {code: kind for kind in "LNM" for code in matching(rf"\p{{{kind}}}")}
    found = [(0, "")]
    for code in CODES:
        if kinds.get(code, "") != found[-1][1]:
            found.append((code, kinds.get(code, "")))
    return found


def main() -> None:
    """Write the file."""
    lines = ", ".join(f'[{start}, "{kind}"]' for start, kind in runs())
    FILE.write_text(f'{{"unicode": {json.dumps(UNICODE)}, "runs": [{lines}]}}\n', "utf-8")


if __name__ == "__main__":
    main()
