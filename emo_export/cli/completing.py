"""What a shell offers where an option takes a target, a device, a profile, a domain or a folder.

Nothing heavy is imported: a shell asks at each press of the tab key.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import click
from click.shell_completion import (
    BashComplete,
    CompletionItem,
    add_completion_class,
    split_arg_string,
)

_BASH = """\
%(complete_func)s() {
    local IFS=$'\\n' reply
    for reply in $(env COMP_LINE="${COMP_LINE:0:$COMP_POINT}" \
COMP_WORDBREAKS="$COMP_WORDBREAKS" %(complete_var)s=bash_complete $1); do
        case "$reply" in
            dir,*) compopt -o dirnames ;;
            file,*) compopt -o default ;;
            plain,*) COMPREPLY+=("${reply#plain,}") ;;
        esac
    done
}

complete -o nosort -F %(complete_func)s %(prog_name)s
"""


class Bash(BashComplete):
    """Click's, but for words that bash cuts in pieces, as `gguf:q4_0`: it takes the last piece."""

    source_template = _BASH

    def get_completion_args(self) -> tuple[list[str], str]:
        """The words before the one at the cursor, and that one."""
        line = os.environ["COMP_LINE"]
        words = split_arg_string(line)
        last = words.pop() if words and not line[-1:].isspace() else ""
        option, sign, value = last.partition("=")
        typed = value if sign and option.startswith("-") else last
        breaks = os.environ.get("COMP_WORDBREAKS", "")
        # Readline cuts behind these two, and before an @.
        after = [typed.rfind(sign) + 1 for sign in ":=" if sign in breaks]
        before = [typed.rfind(sign) for sign in "@" if sign in breaks]
        self._known = max(0, *after, *before)
        return words[1:], last

    def format_completion(self, item: CompletionItem) -> str:
        """A line of its type and, of a name, the piece that is not yet there."""
        value = str(item.value)
        return f"{item.type},{value[self._known :] if item.type == 'plain' else value}"


def begin() -> None:
    """Let click find our class of bash."""
    add_completion_class(Bash)


def folder(ctx: click.Context, param: click.Parameter, typed: str) -> list[CompletionItem]:
    """A checkpoint that is here: the shell lists folders."""
    return [CompletionItem(typed, type="dir")]


def place(ctx: click.Context, param: click.Parameter, typed: str) -> list[CompletionItem]:
    """A checkpoint, a package or a model that is here: the shell lists files and folders."""
    return [CompletionItem(typed, type="file")]


def targets(ctx: click.Context, param: click.Parameter, typed: str) -> list[CompletionItem]:
    """Every target."""
    from emo_export.cli.target_names import NAMES

    return _of(sorted(NAMES), typed)


def package_targets(ctx: click.Context, param: click.Parameter, typed: str) -> list[CompletionItem]:
    """The targets of the package that is named before; every target where none is."""
    from emo_export.errors import EmoExportError
    from emo_export.files.manifest import Manifest

    package = _package(ctx)
    if package is None:
        return targets(ctx, param, typed)
    try:
        return _of(Manifest.load(package).targets, typed)
    except EmoExportError:
        return targets(ctx, param, typed)


def package_domains(ctx: click.Context, param: click.Parameter, typed: str) -> list[CompletionItem]:
    """The domains of the folder that is named before."""
    from emo_export.errors import EmoExportError
    from emo_export.files.domains import is_domains, read_domains

    package = _package(ctx)
    try:
        return _of(read_domains(package) if package and is_domains(package) else [], typed)
    except EmoExportError:
        return []


def devices(ctx: click.Context, param: click.Parameter, typed: str) -> list[CompletionItem]:
    """Emulated devices with what they are, and the other ways to one."""
    from emo_export.runtimes.devices.profiles import PROFILES

    others = {"here": "this machine", "ssh://": "[user@]host[:port]", "adb": "a phone"}
    known = {**{name: one.title for name, one in PROFILES.items()}, **others}
    return [CompletionItem(n, help=told) for n, told in known.items() if n.startswith(typed)]


def profiles(ctx: click.Context, param: click.Parameter, typed: str) -> list[CompletionItem]:
    """Devices that a plan knows."""
    from emo_export.planning.profiles import device_profiles

    known = device_profiles().items()
    return [CompletionItem(n, help=one.title) for n, one in known if n.startswith(typed)]


def _of(names: Iterable[str], typed: str) -> list[CompletionItem]:
    return [CompletionItem(name) for name in names if name.startswith(typed)]


def _package(ctx: click.Context) -> Path | None:
    """The first argument; click leaves it among the rest where the last option has no value yet."""
    found = ctx.params.get("path") or ctx.params.get("paths") or ctx.args
    if isinstance(found, tuple | list):
        found = found[0] if found else None
    return None if found is None else Path(found)
