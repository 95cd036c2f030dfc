"""How much a long command tells on stderr of what goes on: -q, as usual, or -v."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Callable
from typing import Any, TypeVar

import click

from emo_export.cli.output import say

Command = TypeVar("Command", bound=Callable[..., Any])

_QUIET, _SINCE = f"{__name__}.quiet", f"{__name__}.since"


def with_progress(command: Command) -> Command:
    """Give a command -q and -v. They change nothing of its result, so it does not get them."""
    for letter, word, told in (
        ("-v", "--verbose", "Tell of each stage after how many seconds it began."),
        ("-q", "--quiet", "No progress, no hints; warnings and errors stay."),
    ):
        command = click.option(
            letter, word, is_flag=True, expose_value=False, callback=_remember, help=told
        )(command)
    return command


def _remember(ctx: click.Context, param: click.Parameter, given: bool) -> None:
    if not given:
        return
    if param.name == "quiet":
        ctx.meta[_QUIET] = True
    else:
        ctx.meta[_SINCE] = time.monotonic()
    if _QUIET in ctx.meta and _SINCE in ctx.meta:
        raise click.UsageError("give one of --quiet and --verbose")


def quiet() -> bool:
    """Whether the command that runs was told to be."""
    ctx = click.get_current_context(silent=True)
    return ctx is not None and _QUIET in ctx.meta


def timed(line: str) -> str:
    """A line of progress; with -v after the seconds since the command began."""
    ctx = click.get_current_context(silent=True)
    if ctx is None or _SINCE not in ctx.meta:
        return line
    return f"{time.monotonic() - ctx.meta[_SINCE]:8.1f} s  {line}"


def progress(line: str) -> None:
    """Tell of what goes on, on stderr; nothing with -q."""
    if not quiet():
        say(timed(line))


def suggest(*commands: list[str]) -> None:
    """Say on a terminal which commands come next, in one line; nothing with -q."""
    if not quiet() and sys.stderr.isatty():
        say(f"next: {', or '.join(shlex.join(['emo-export', *words]) for words in commands)}")
