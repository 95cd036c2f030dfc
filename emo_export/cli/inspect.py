"""The work of `inspect`: what it prints."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import click
from rich.console import Console

from emo_export.errors import EmoExportError


def run_inspect(path: str, as_json: bool, out: Console) -> None:
    """Print what a path is, and what is wrong with it; a Hugging Face id is fetched first."""
    from emo_export.inspect.checkpoint import inspect_path
    from emo_export.inspect.view import render
    from emo_export.model.hub import locate
    from emo_export.report.checkpoint import note

    place = locate(path)
    found = inspect_path(place, _expressible(place))
    if as_json:
        click.echo(json.dumps(found.as_dict(), indent=2))
    else:
        out.print(render(found))
        for unusual in found.notes:
            out.print(f"note: {note(unusual)}", markup=False, highlight=False)


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
