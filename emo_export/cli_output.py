"""Stdout of the command line, and what becomes of it when it can't be written."""

from __future__ import annotations

import os
import sys

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
            _drop_stdout()
            ctx.exit(141)
        except OSError as error:
            if error.filename is not None:
                raise
            _drop_stdout()
            raise EmoExportError(f"output cannot be written ({error.strerror})") from error
        return result


def _drop_stdout() -> None:
    """What is still buffered has nowhere to go."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
