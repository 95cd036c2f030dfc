"""Text that came from elsewhere, inside Markdown: it is read as it is, and means nothing.

Source: CommonMark 0.31, 2.4 (backslash escapes) and 6.1 (code spans).
"""

from __future__ import annotations

import re

from emo_export.base.shown import on_one_line

_MARKS = re.compile(
    r"[!#$&*+<>@\[-^`{-~]"  # and & of entities, @ of mentions, | of cells, ~ of what is struck out
    r"|(?<![A-Za-z0-9])[-_=]|[-_=](?![A-Za-z0-9])"  # emphasis, lists and rules, not names
    r"|:(?=//)|(?<=\bwww)\."  # GitHub makes links of addresses
)


def plain(text: str) -> str:
    """Text inside a paragraph, a heading or a cell of a table."""
    return _MARKS.sub(r"\\\g<0>", on_one_line(text))


def code(text: str) -> str:
    """A code span, in a fence that the text has not; not for a cell of a table, which | ends."""
    line = on_one_line(text)
    runs = {len(run) for run in re.findall("`+", line)}
    fence = "`" * next(n for n in range(1, len(runs) + 2) if n not in runs)
    edge = " " if line.startswith("`") or line.endswith("`") or not line.strip() else ""
    return f"{fence}{edge}{line}{edge}{fence}"
