"""The options of `run`, and its help."""

from __future__ import annotations

from pathlib import Path

import click

from emo_export.cli.validate_command import THREADS
from emo_export.files.kv_cache import KV_CACHES


@click.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.argument("text", required=False, metavar="[PROMPT]")
@click.option("-p", "--prompt", help="The same as PROMPT; - reads stdin.")
@click.option("-n", "--max-tokens", default=128, show_default=True, type=click.IntRange(0))
@click.option("--temperature", default=0.7, show_default=True, help="0 takes the likeliest token.")
@click.option("--top-k", default=0, show_default=True, help="So many of the likeliest; 0: all.")
@click.option("--top-p", default=0.95, show_default=True, help="Those that make up this share.")
@click.option("--min-p", default=0.0, show_default=True, help="Of the likeliest's probability.")
@click.option("--repetition-penalty", default=1.0, show_default=True, help="1: none.")
@click.option("--stop", multiple=True, metavar="TEXT", help="End before it.  [repeatable]")
@click.option("--seed", type=click.IntRange(0), help="For the same text again.  [default: drawn]")
@click.option("--domain", metavar="NAME", help="Of a folder that export --domain made.")
@click.option("--target", metavar="SPEC", help="Of a folder.  [default: the first that can run]")
@click.option("--threads", type=click.IntRange(1), help=THREADS)
@click.option(
    "--kv-cache",
    type=click.Choice(KV_CACHES),
    help="Type of keys and values: for GGUF f16 (default), f32 or q8_0, for ONNX f32 (default) or "
    "int8.",
)
@click.option(
    "--cache-prepacked",
    is_flag=True,
    help="ONNX: map the weights as the CPU's kernels want them from a copy on disk, made at the "
    "first use; takes twice their bytes there, and a tenth of them in memory of its own.",
)
@click.option(
    "--cache-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where that copy is kept.  [default: ~/.cache/emo-export/prepacked]",
)
@click.option(
    "--spin/--no-spin",
    default=None,
    help="ONNX: threads wait for work in a loop: faster, and their cores are never idle.  "
    "[default: spin]",
)
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
    run_text(place, asked, target, threads, settings, kv_cache, as_json, quiet)
