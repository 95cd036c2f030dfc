"""Stdout and stderr of the command line, and what becomes of them when they can't be written."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from typing import TYPE_CHECKING, TextIO

import click

from emo_export.base.shown import on_one_line, shown

if TYPE_CHECKING:
    from rich.console import Console


def stdout() -> Console:
    """The console for data."""
    from emo_export.cli.page import Page, Unpadded

    # A pipe has no width, and what goes into one must not be folded.
    if sys.stdout.isatty():
        return Page(highlight=False, markup=False, emoji=False)
    return Page(file=Unpadded(), width=400, highlight=False, markup=False, emoji=False)


def stderr() -> Console:
    """The console for what goes on."""
    from emo_export.cli.page import Page

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


def tell(text: str) -> None:
    """Write to stderr; where that fails there is nobody to tell, and the exit code must do."""
    try:
        click.echo(_folded(shown(text), sys.stderr), err=True)
    except OSError:
        drop(sys.stderr)


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


def drop(stream: TextIO) -> None:
    """Let what is still buffered go nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
