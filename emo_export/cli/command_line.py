"""The command line of the command that runs, as a manifest keeps it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

import click
from click.core import ParameterSource


def command_line() -> str | None:
    """What was typed, options in the order of the help, of paths the name alone; None in Python.

    So it is the same wherever the folders lay, and tells nobody where.
    """
    context = click.get_current_context(silent=True)
    if context is None:
        return None
    words = ["emo-export", context.command.name or ""]
    last: list[str] = []
    for parameter in context.command.params:
        name = parameter.name or ""
        if context.get_parameter_source(name) != ParameterSource.COMMANDLINE:
            continue
        if not parameter.expose_value:  # -q and -v change nothing of what is made
            continue
        value = context.params[name]
        if isinstance(parameter, click.Argument):
            last.append(_word(value))
        elif isinstance(parameter, click.Option) and parameter.is_flag:
            flags = parameter.opts if value else parameter.secondary_opts
            words.append(max(flags, key=len))
        else:
            words += _pairs(max(parameter.opts, key=len), value)
    return shlex.join([*words, *last])


def _pairs(option: str, value: object) -> Iterator[str]:
    for one in value if isinstance(value, tuple) else (value,):
        yield from (option, _word(one))


def _word(value: object) -> str:
    if isinstance(value, Path):
        return value.name
    text = str(value)
    name, sign, place = text.partition("=")  # --domain NAME=PLACE
    if sign and Path(place).exists():
        return f"{name}={Path(place).name}"
    return Path(text).resolve().name if Path(text).exists() else text
