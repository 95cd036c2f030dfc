"""Text that came from elsewhere, as a terminal, a page or a report may show it.

A file name, a key of a checkpoint or a token may hold characters that move a terminal's cursor, set
its title, or turn the reading direction around, so that what is seen is not what is there.
"""

from __future__ import annotations

import re

_COMMANDS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # control characters but tab and newline
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # directions (Unicode Standard Annex 9)
    "\u2028\u2029\ufeff\ufff9-\ufffb"  # line separators, byte order marks, annotations
    "\U000e0000-\U000e007f\ud800-\udfff]"  # tags; what no encoding has a place for
)
_BREAKS = re.compile(r"[\t\n]")


def shown(text: str) -> str:
    r"""The text, with what is no character to be seen spelled out: ESC becomes \x1b.

    Newlines and tabs stay; all of it can be encoded.
    """
    return _COMMANDS.sub(_spelled, text)


def on_one_line(text: str) -> str:
    r"""The same, newlines and tabs spelled out too: \n."""
    return _BREAKS.sub(_spelled, shown(text))


def _spelled(found: re.Match[str]) -> str:
    return ascii(found[0])[1:-1]
