"""The work of `run`, `inspect` and `doctor`: what they print."""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import asdict
from pathlib import Path

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from emo_export.artifact import choose_artifact
from emo_export.cli_targets import open_runtime, tokenizer_of
from emo_export.errors import EmoExportError


def run_text(
    path: Path,
    prompt: str,
    max_tokens: int,
    temperature: float,
    top_p: float,
    seed: int,
    target: str | None,
    threads: int | None,
) -> None:
    """Stream text to stdout as it comes."""
    from emo_export.runtimes.generate import generate

    artifact = choose_artifact(path, target)
    runtime = open_runtime(artifact, threads)
    try:
        tokenizer = tokenizer_of(artifact, runtime)
        for piece in generate(
            runtime,
            tokenizer,
            tokenizer.encode(prompt),
            max_tokens=max_tokens,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
        ):
            sys.stdout.write(piece)
            sys.stdout.flush()
        sys.stdout.write("\n")
    finally:
        runtime.close()


def run_inspect(path: str, as_json: bool, out: Console) -> None:
    """Print what a path is, and what is wrong with it; a Hugging Face id is fetched first."""
    from emo_export.hub import locate
    from emo_export.inspect import inspect_path
    from emo_export.inspect_view import render

    place = locate(path)
    found = inspect_path(place, _expressible(place))
    if as_json:
        click.echo(json.dumps(found.as_dict(), indent=2))
    else:
        out.print(render(found))


def _expressible(place: Path) -> dict[str, str] | None:
    """For a checkpoint: which kind of target can express it, or why not."""
    if not (place / "config.json").is_file() or (place / "model.onnx").is_file():
        return None
    if importlib.util.find_spec("gguf") is None or importlib.util.find_spec("onnx") is None:
        return None
    from emo_export.config import EmoConfig
    from emo_export.converters.to_gguf import gguf_scheme
    from emo_export.converters.to_onnx import onnx_scheme

    verdicts: dict[str, str] = {}
    for kind, scheme in (("gguf", gguf_scheme), ("onnx", onnx_scheme)):
        try:
            scheme("f32", EmoConfig.from_json(place / "config.json"))
            verdicts[kind] = "yes"
        except EmoExportError as error:
            verdicts[kind] = str(error)
    return verdicts


def run_doctor(as_json: bool, out: Console) -> None:
    """Print what this machine has and what is missing for what."""
    from emo_export.doctor import examine
    from emo_export.runtimes.llama_abi import load_library

    def llama_info() -> str:
        return str(load_library().api.llama_print_system_info().decode())

    checks = examine(llama_info)
    if as_json:
        click.echo(json.dumps([asdict(check) for check in checks], indent=2))
        return
    table = Table(show_edge=False)
    for heading in ("", "what", "found", "needed for", "remedy"):
        table.add_column(heading, overflow="fold")
    for check in checks:
        mark = "ok" if check.ok else "no"
        remedy = "" if check.ok else check.remedy
        table.add_row(mark, *map(escape, (check.name, check.found, check.needed_for, remedy)))
    out.print(table)
