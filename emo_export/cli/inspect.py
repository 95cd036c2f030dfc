"""The work of `inspect`: what it prints."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path

import click
from rich.console import Console

from emo_export.base.install import CONVERT, need
from emo_export.cli.output import say
from emo_export.cli.work import open_checkpoint, progress_steps
from emo_export.errors import EmoExportError
from emo_export.files.manifest import NAME as MANIFEST
from emo_export.parity.golden import Golden
from emo_export.report.html.usage_page import (
    Usage,
    check_writable,
    expert_usage,
    write_usage_page,
)


def run_inspect(
    path: str,
    plot: Path | None,
    calibration: Sequence[Path],
    tokens: int,
    as_json: bool,
    out: Console,
) -> None:
    """Print what a path is, and what is wrong with it; a Hugging Face id is fetched first.

    `plot` gets a picture of expert usage: of a package the recorded one, of a checkpoint that of
    the texts.
    """
    from emo_export.inspect.checkpoint import inspect_path
    from emo_export.inspect.view import render
    from emo_export.model.hub import locate
    from emo_export.report.checkpoint import note

    if calibration and plot is None:
        raise EmoExportError("--calibration is what --plot draws: add --plot FILE")
    if plot is not None:
        check_writable(plot)
    place = locate(path)
    usage = [] if plot is None else _usage(path, place, calibration, tokens)
    found = inspect_path(place, _expressible(place))
    if as_json:
        click.echo(json.dumps(found.as_dict(), indent=2))
    else:
        out.print(render(found))
        for unusual in found.notes:
            out.print(f"note: {note(unusual)}", markup=False, highlight=False)
    if plot is not None:
        write_usage_page(plot, place.resolve().name, usage)
        say(f"wrote {plot}")


def _usage(path: str, place: Path, calibration: Sequence[Path], tokens: int) -> list[Usage]:
    """Raises EmoExportError where it is not known, and by what it can be."""
    packaged = (place / MANIFEST).is_file()
    checkpoint = (place / "config.json").is_file() and not (place / "model.onnx").is_file()
    if calibration:
        if packaged or not checkpoint:
            raise EmoExportError(f"{place}: --calibration is for a checkpoint, and this is none")
        need(CONVERT, "convert", "inspect --plot")
        from emo_export.jobs.usage import usage_of

        with progress_steps() as steps:
            return usage_of(open_checkpoint(path), calibration, tokens, steps)
    if not place.exists():
        raise EmoExportError(f"{place}: there is no such file or folder")
    file = place / "golden.npz"
    if checkpoint and not packaged:
        raise EmoExportError(f"{place}: records no expert usage; give a text: --calibration FILE")
    if not packaged:
        raise EmoExportError(f"{place}: records no expert usage; give the folder that export made")
    if not file.is_file():
        raise EmoExportError(f"{place}: has no golden.npz, which records expert usage; export anew")
    usage = expert_usage(Golden.load(file))
    if not usage:
        raise EmoExportError(f"{file}: records no expert usage (an older emo-export); export anew")
    return usage


def _expressible(place: Path) -> dict[str, str] | None:
    """For a checkpoint: which kind of target can express it, or why not."""
    if not (place / "config.json").is_file() or (place / "model.onnx").is_file():
        return None
    if importlib.util.find_spec("gguf") is None or importlib.util.find_spec("onnx") is None:
        return None
    from emo_export.families import FAMILIES
    from emo_export.model.config import EmoConfig

    verdicts: dict[str, str] = {}
    for kind, family in FAMILIES.items():
        try:
            family.check(EmoConfig.from_json(place / "config.json"))
            verdicts[kind] = "yes"
        except EmoExportError as error:
            verdicts[kind] = str(error)
    return verdicts
