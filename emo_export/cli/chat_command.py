"""The options of `chat`, and its help."""

from __future__ import annotations

from pathlib import Path

import click

from emo_export.cli.writing_options import ENGINE, SAMPLING, with_options


@click.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--system", default="", metavar="TEXT", help="What stands before all that is said.")
@click.option(
    "-n",
    "--max-tokens",
    default=256,
    show_default=True,
    type=click.IntRange(1),
    help="Of an answer.",
)
@with_options(SAMPLING)
@with_options(ENGINE)
@click.option("--json", "as_json", is_flag=True, help="Print an event in JSON for each token.")
@click.option("--logprobs", is_flag=True, help="With --json: log-probability of each token.")
@click.option("-q", "--quiet", is_flag=True, help="Nothing but the text: no hints, no figures.")
def chat(
    path: Path,
    system: str,
    max_tokens: int,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    repetition_penalty: float,
    stop: tuple[str, ...],
    seed: int | None,
    domain: str | None,
    target: str | None,
    threads: int | None,
    kv_cache: str | None,
    prompt_cache: Path | None,
    cache_prepacked: bool,
    cache_dir: Path | None,
    spin: bool | None,
    as_json: bool,
    logprobs: bool,
    quiet: bool,
) -> None:
    """Write a text with a model, in turns.

    PATH is a .gguf file, an ONNX folder or a folder that export made. EMO is a base model: it goes
    on with what you type, an empty line lets it go on with its own; a model with a chat template
    answers by that. Each turn reads only what is new. Where the context is full, the oldest turns
    are forgotten, which is told. Ctrl-C ends an answer, Ctrl-D the chat, /help tells the rest. In a
    pipe each line is a turn.

    \b
    Example:
        emo-export chat out --system "A dictionary of the sea."
    """
    from emo_export.cli.chat import Settings, run_chat
    from emo_export.cli.targets import OnnxSettings
    from emo_export.files.domains import domain_folder
    from emo_export.runtimes.sampling import Sampling

    if logprobs and not as_json:
        raise click.UsageError("--logprobs goes into the events of --json")
    sampling = Sampling(repetition_penalty, temperature, top_k, top_p, min_p)
    onnx = OnnxSettings(cache_prepacked, cache_dir, spin)
    settings = Settings(system, sampling, max_tokens, seed, stop, as_json, logprobs, quiet)
    place = path if domain is None else domain_folder(path, domain)
    run_chat(place, settings, target, threads, onnx, kv_cache, prompt_cache)
