"""What `run` and `chat` have in common: options of sampling, and of the engine that writes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from emo_export.cli import completing
from emo_export.cli.validate_command import THREADS
from emo_export.files.kv_cache import KV_CACHES

Command = TypeVar("Command", bound=Callable[..., Any])

SAMPLING = (
    click.option("--temperature", default=0.7, show_default=True, help="0 takes the likeliest."),
    click.option("--top-k", default=0, show_default=True, help="So many of the likeliest; 0: all."),
    click.option("--top-p", default=0.95, show_default=True, help="Those that make up this share."),
    click.option("--min-p", default=0.0, show_default=True, help="Of the likeliest's probability."),
    click.option("--repetition-penalty", default=1.0, show_default=True, help="1: none."),
    click.option("--stop", multiple=True, metavar="TEXT", help="End before it.  [repeatable]"),
    click.option(
        "--seed", type=click.IntRange(0), help="For the same text again.  [default: drawn]"
    ),
)
ENGINE = (
    click.option(
        "--domain",
        metavar="NAME",
        shell_complete=completing.package_domains,
        help="Of a folder that export --domain made.",
    ),
    click.option(
        "--target",
        metavar="SPEC",
        shell_complete=completing.package_targets,
        help="Of a folder.  [default: the first that can run]",
    ),
    click.option("--threads", type=click.IntRange(1), help=THREADS),
    click.option(
        "--kv-cache",
        type=click.Choice(KV_CACHES),
        help="Type of keys and values: for GGUF f16 (default), f32 or q8_0, for ONNX f32 (default) "
        "or int8.",
    ),
    click.option(
        "--prompt-cache",
        type=click.Path(dir_okay=False, path_type=Path),
        metavar="FILE",
        help="Keep there what the engine has made of the prompt, and begin with it the next time.",
    ),
    click.option(
        "--cache-prepacked",
        is_flag=True,
        help="ONNX: map the weights as the CPU's kernels want them from a copy on disk, made at "
        "the first use; takes twice their bytes there, and a tenth of them in memory of its own.",
    ),
    click.option(
        "--cache-dir",
        type=click.Path(file_okay=False, path_type=Path),
        help="Where that copy is kept.  [default: ~/.cache/emo-export/prepacked]",
    ),
    click.option(
        "--spin/--no-spin",
        default=None,
        help="ONNX: threads wait for work in a loop: faster, and their cores are never idle.  "
        "[default: spin]",
    ),
)


def with_options(options: tuple[Callable[[Any], Any], ...]) -> Callable[[Command], Command]:
    """A decorator that gives a command all of these options, in their order."""

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate
