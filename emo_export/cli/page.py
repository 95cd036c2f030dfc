"""A stream as rich prints on it. Imported where a table or a bar is shown: rich takes a while."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Iterator

from rich.console import (
    Console,
    ConsoleOptions,
    HighlighterType,
    JustifyMethod,
    OverflowMethod,
    RenderableType,
)
from rich.segment import Segment
from rich.style import Style
from rich.text import Text

from emo_export.base.shown import shown


class Page(Console):
    """A stream as rich prints on it, where no text is markup or moves the cursor.

    A reader that went away is not rich's business.
    """

    def render_str(
        self,
        text: str,
        *,
        style: str | Style = "",
        justify: JustifyMethod | None = None,
        overflow: OverflowMethod | None = None,
        emoji: bool | None = None,
        markup: bool | None = None,
        highlight: bool | None = None,
        highlighter: HighlighterType | None = None,
    ) -> Text:
        """A text of a table, which takes as much room as it is shown with."""
        return super().render_str(
            shown(text),
            style=style,
            justify=justify,
            overflow=overflow,
            emoji=emoji,
            markup=markup,
            highlight=highlight,
            highlighter=highlighter,
        )

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterator[Segment]:
        """What is printed: rich's own commands as they are, texts as they may be shown."""
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else shown(text), style, control)

    def on_broken_pipe(self) -> None:
        """Leave it to `Commands`."""
        raise BrokenPipeError


class Unpadded(io.StringIO):
    """Stdout without the blanks at the ends of lines with which rich fills a table."""

    def write(self, text: str) -> int:
        """All of a text; what is printed ends with a line."""
        sys.stdout.write(re.sub(r" +(?=\n)", "", text))
        return len(text)

    def flush(self) -> None:
        """Of stdout."""
        sys.stdout.flush()
