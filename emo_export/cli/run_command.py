"""The options of `run`, and its help."""

from __future__ import annotations

from pathlib import Path

import click

from emo_export.cli.writing_options import ENGINE, SAMPLING, with_options


@click.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.argument("text", required=False, metavar="[PROMPT]")
@click.option("-p", "--prompt", help="The same as PROMPT; - reads stdin.")
@click.option("-n", "--max-tokens", default=128, show_default=True, type=click.IntRange(0))
@with_options(SAMPLING)
@with_options(ENGINE)
@click.option("--json", "as_json", is_flag=True, help="Print an event in JSON for each token.")
@click.option("--logprobs", is_flag=True, help="With --json: log-probability of each token.")
@click.option("-q", "--quiet", is_flag=True, help="Nothing but the text: no figures at the end.")
def run(
    path: Path,
    text: str | None,
    prompt: str | None,
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
    """Stream the text that follows a prompt.

    PATH is a .gguf file, an ONNX folder or a folder that export made. Without PROMPT it is read
    from stdin. Ends at the end-of-text token, after --max-tokens, or where the context is full.
    Figures of speed and memory, and the seed, go to stderr.

    \b
    Example:
        emo-export run out "def main(" -n 64
        echo "def main(" | emo-export run out --target onnx:int4
    """
    from emo_export.cli.run import Asked, prompt_text, run_text
    from emo_export.cli.targets import OnnxSettings
    from emo_export.files.domains import domain_folder
    from emo_export.runtimes.sampling import Sampling

    if logprobs and not as_json:
        raise click.UsageError("--logprobs goes into the events of --json")
    sampling = Sampling(repetition_penalty, temperature, top_k, top_p, min_p)
    asked = Asked(prompt_text(text, prompt), sampling, max_tokens, seed, stop, logprobs)
    settings = OnnxSettings(cache_prepacked, cache_dir, spin)
    place = path if domain is None else domain_folder(path, domain)
    run_text(place, asked, target, threads, settings, kv_cache, prompt_cache, as_json, quiet)
