"""The work of `run`, `inspect` and `doctor`: what they print."""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import click
from rich.console import Console

from emo_export.base.shown import shown
from emo_export.cli.targets import OnnxSettings, open_with
from emo_export.errors import EmoExportError


@dataclass(frozen=True)
class Sampling:
    """How `run` chooses tokens, as its help describes it."""

    max_tokens: int
    temperature: float
    top_p: float
    seed: int


def run_text(
    path: Path,
    prompt: str,
    target: str | None,
    threads: int | None,
    sampling: Sampling,
    settings: OnnxSettings,
    kv_cache: str | None,
) -> None:
    """Stream text to stdout as it comes."""
    from emo_export.runtimes.loading import Model, first_that_runs

    path = first_that_runs(path, target)
    with Model(path, open_with(path, threads, settings, kv_cache)) as model:
        for piece in model.text(
            prompt,
            max_tokens=sampling.max_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            seed=sampling.seed,
        ):
            # A terminal obeys what it reads; a file or a pipe gets the text as it is.
            sys.stdout.write(shown(piece) if sys.stdout.isatty() else piece)
            sys.stdout.flush()
        sys.stdout.write("\n")
        sys.stdout.flush()


def prompt_text(prompt: str) -> str:
    """The prompt, or all of stdin for `-` without one final newline.

    Raises EmoExportError when it is not UTF-8.
    """
    try:
        if prompt == "-":
            return sys.stdin.buffer.read().decode("utf-8").removesuffix("\n")
        prompt.encode("utf-8")
    except UnicodeError as error:
        raise EmoExportError(f"the prompt is not UTF-8 ({error})") from error
    return prompt


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


def run_doctor(as_json: bool, out: Console) -> None:
    """Print what this machine has and what is missing for what."""
    from emo_export.bench.device_list import device_check
    from emo_export.bench.doctor import examine
    from emo_export.runtimes.llama.abi import load_library

    def llama_info() -> str:
        return str(load_library().api.llama_print_system_info().decode())

    checks = [*examine(llama_info), device_check()]
    if as_json:
        click.echo(json.dumps([asdict(check) for check in checks], indent=2))
        return
    for check in sorted(checks, key=lambda check: not check.name.startswith("ready")):
        out.print(f"{'ok' if check.ok else 'no':3} {check.name}: {check.found}", markup=False)
        if not check.ok:
            out.print(f"      for {check.needed_for}: {check.remedy}", markup=False)
