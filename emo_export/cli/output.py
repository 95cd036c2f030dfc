"""Stdout and stderr of the command line, and what becomes of them when they can't be written."""

from __future__ import annotations

import os
import sys
from typing import TextIO

import click
from rich.console import Console

from emo_export.errors import EmoExportError


class _Out(Console):
    """Stdout as rich prints it; a reader that went away is not rich's business."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def stdout() -> Console:
    """The console for data."""
    # A pipe has no width, and what goes into one must not be folded.
    return _Out(width=None if sys.stdout.isatty() else 400, highlight=False)


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
        click.echo(text, err=True)
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
