"""Stdout and stderr of the command line, and what becomes of them when they can't be written."""

from __future__ import annotations

import io
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Iterator
from typing import TextIO

import click
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

from emo_export.base.shown import on_one_line, shown
from emo_export.errors import EmoExportError


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


def stdout() -> Console:
    """The console for data."""
    # A pipe has no width, and what goes into one must not be folded.
    if sys.stdout.isatty():
        return Page(highlight=False, markup=False, emoji=False)
    return Page(file=Unpadded(), width=400, highlight=False, markup=False, emoji=False)


def stderr() -> Console:
    """The console for what goes on."""
    return Page(stderr=True, highlight=False, markup=False, emoji=False)


def put(line: str) -> None:
    """Print a line of text for the user to stdout."""
    click.echo(_folded(shown(line), sys.stdout))


def say(line: str) -> None:
    """Tell the user something that is not data: a line on stderr, whatever names are in it."""
    click.echo(_folded(on_one_line(line), sys.stderr), err=True)


def _folded(text: str, stream: TextIO) -> str:
    """Lines between words for a terminal, which would break these; paths stay whole."""
    if not stream.isatty():
        return text
    fold = textwrap.TextWrapper(
        shutil.get_terminal_size().columns,
        subsequent_indent="  ",
        break_long_words=False,
        break_on_hyphens=False,
    )
    return "\n".join(fold.fill(line) for line in text.split("\n"))


class Commands(click.Group):
    """Turns a failing stdout into an exit code before click makes 1 of it, which means parity."""

    def invoke(self, ctx: click.Context) -> object:
        """Run a command; a reader of stdout that went away is exit 141, a full disk exit 2."""
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
        except BrokenPipeError:
            _drop(sys.stdout)
            ctx.exit(141)
        except OSError as error:
            if error.filename is not None:
                raise
            _drop(sys.stdout)
            raise EmoExportError(f"output cannot be written ({error.strerror})") from error
        return result


def tell(text: str) -> None:
    """Write to stderr; where that fails there is nobody to tell, and the exit code must do."""
    try:
        click.echo(_folded(shown(text), sys.stderr), err=True)
    except OSError:
        _drop(sys.stderr)


def open_streams() -> None:
    """Stand in for the standard streams that the caller closed.

    The next file that is opened would take the free number, and what an engine's C code prints
    would go into it.
    """
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        if getattr(sys, name) is None:
            free = os.open(os.devnull, os.O_RDWR)
            if free != number:
                os.dup2(free, number)
                os.close(free)
            setattr(sys, name, os.fdopen(number, mode, encoding="utf-8"))


def _drop(stream: TextIO) -> None:
    """What is still buffered has nowhere to go."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
