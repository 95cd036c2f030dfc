"""The group of all commands, each imported when it is asked for."""

from __future__ import annotations

import importlib
import sys

import click

from emo_export.base.near import did_you_mean
from emo_export.cli.output import drop
from emo_export.errors import EmoExportError

NAMES = (
    "bench",
    "chat",
    "compare",
    "device",
    "doctor",
    "domains",
    "export",
    "inspect",
    "plan",
    "prune",
    "run",
    "serve",
    "sweep",
    "validate",
    "verify",
)
"""Each is a function of its name in `emo_export.cli.NAME_command`."""


class Commands(click.Group):
    """Imports no command but the one that runs; all of them only for the list that --help shows."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names, sorted."""
        return list(NAMES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """A command by its name, or None."""
        if cmd_name not in NAMES:
            return None
        module = importlib.import_module(f"emo_export.cli.{cmd_name}_command")
        command = getattr(module, cmd_name)
        if not isinstance(command, click.Command):
            raise TypeError(f"{module.__name__}.{cmd_name} is no command")
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that is asked for. Raises a UsageError, with what was meant, for a slip."""
        name = args[0]
        if name not in NAMES and not name.startswith("-") and not ctx.resilient_parsing:
            ctx.fail(f"There is no command {name}{did_you_mean(name, NAMES)}")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> object:
        """Run a command; a reader of stdout that went away is exit 141, a full disk exit 2.

        Click would make 1 of both, which means failed parity.
        """
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
        except BrokenPipeError:
            drop(sys.stdout)
            ctx.exit(141)
        except OSError as error:
            if error.filename is not None:
                raise
            drop(sys.stdout)
            raise EmoExportError(f"output cannot be written ({error.strerror})") from error
        return result
