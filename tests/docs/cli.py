"""docs/cli.md, made from the commands themselves.

python -m tests.docs.cli
"""

from __future__ import annotations

from collections.abc import Iterator

import click

from emo_export.cli.main import cli
from tests.kit.paths import ROOT

WIDTH = {"max_content_width": 90, "terminal_width": 90}
PAGE = ROOT / "docs" / "cli.md"
HEAD = (
    "# Commands\n\nWhat `emo-export COMMAND --help` prints. "
    "`python -m tests.docs.cli` makes this page.\n"
)


def commands(command: click.Command, context: click.Context) -> Iterator[tuple[str, str]]:
    """(command path, help text) of a command and of all below it."""
    yield context.command_path, command.get_help(context)
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            if inner is not None:
                yield from commands(inner, inner.context_class(inner, context, name))


def page() -> str:
    """The whole document."""
    context = click.Context(cli, info_name="emo-export", **{**cli.context_settings, **WIDTH})
    parts = [f"## {name}\n\n```text\n{text}\n```\n" for name, text in commands(cli, context)]
    return "\n".join([HEAD, *parts])


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
