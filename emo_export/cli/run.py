"""The work of `run`: what it prints."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from emo_export.base.process_memory import peak_resident
from emo_export.base.shown import shown
from emo_export.cli.output import say
from emo_export.cli.targets import OnnxSettings, open_with
from emo_export.errors import EmoExportError
from emo_export.runtimes.generate import Answer, End
from emo_export.runtimes.sampling import Sampling


@dataclass(frozen=True)
class Asked:
    """What `run` was asked for, as its help describes it."""

    prompt: str
    sampling: Sampling
    max_tokens: int
    seed: int | None
    stop: tuple[str, ...]
    logprobs: bool


def run_text(
    path: Path,
    asked: Asked,
    target: str | None,
    threads: int | None,
    settings: OnnxSettings,
    kv_cache: str | None,
    in_json: bool,
    quiet: bool,
) -> None:
    """Stream text to stdout as it comes, or an event in JSON for each token."""
    from emo_export.runtimes.loading import Model, first_that_runs

    path = first_that_runs(path, target)
    with Model(path, open_with(path, threads, settings, kv_cache)) as model:
        answer = model.answer(
            asked.prompt,
            asked.sampling,
            max_tokens=asked.max_tokens,
            seed=asked.seed,
            stop=asked.stop,
            log_probabilities=asked.logprobs,
        )
        if in_json:
            _events(answer, asked.logprobs)
            return
        for piece in answer.texts():
            # A terminal obeys what it reads; a file or a pipe gets the text as it is.
            sys.stdout.write(shown(piece) if sys.stdout.isatty() else piece)
            sys.stdout.flush()
        sys.stdout.write("\n")
        sys.stdout.flush()
        if answer.end == End.CONTEXT:
            say(
                f"the context is full: {model.runtime.context_length} positions hold the prompt "
                "and what was written"
            )
        if not quiet:
            say(figures(answer))


def figures(answer: Answer) -> str:
    """Speed, memory and seed of an answer that is over, on a line."""
    read = _rate(answer.prompt_tokens, answer.prefill_seconds)
    # The first token is chosen from what the prompt gave: no step of the model was made for it.
    written = _rate(answer.tokens - 1, answer.decode_seconds)
    memory = peak_resident()
    parts = [
        f"{answer.prompt_tokens} tokens read{read}",
        f"{answer.tokens} written{written}",
        *([] if memory is None else [f"{memory / 1e6:.0f} MB at most"]),
        f"seed {answer.seed}",
    ]
    return ", ".join(parts)


def _rate(tokens: int, seconds: float) -> str:
    return f" at {tokens / seconds:.1f}/s" if tokens > 0 and seconds > 0 else ""


def _events(answer: Answer, logprobs: bool) -> None:
    """A line of JSON for each token, and one for the end."""
    for said in answer:
        event: dict[str, Any] = {"event": "token", "id": said.token, "text": said.text}
        if logprobs:
            event["logprob"] = said.log_probability
        click.echo(json.dumps(event))
    if answer.end is None:
        raise RuntimeError("an answer ended without a reason")
    click.echo(
        json.dumps(
            {
                "event": "end",
                "reason": answer.end.value,
                "prompt_tokens": answer.prompt_tokens,
                "tokens": answer.tokens,
                "prefill_seconds": answer.prefill_seconds,
                "decode_seconds": answer.decode_seconds,
                "peak_memory_bytes": peak_resident(),
                "seed": answer.seed,
            }
        )
    )


def prompt_text(argument: str | None, option: str | None) -> str:
    """The prompt: PROMPT or --prompt, or all of stdin without one final newline.

    Stdin is read for `-`, and where neither is given and it is no terminal. Raises a UsageError for
    both and for none, and EmoExportError when the prompt is not UTF-8.
    """
    if argument is not None and option is not None:
        raise click.UsageError("the prompt is given twice, as PROMPT and with --prompt")
    given = option if argument is None else argument
    if given is None and sys.stdin.isatty():
        raise click.UsageError('say what is to be continued, as in: emo-export run out "def main("')
    try:
        if given is None or given == "-":
            if sys.stdin.isatty():
                say("reading the prompt from the terminal; Ctrl-D ends it")
            return sys.stdin.buffer.read().decode("utf-8").removesuffix("\n")
        given.encode("utf-8")
    except UnicodeError as error:
        raise EmoExportError(f"the prompt is not UTF-8 ({error})") from error
    return given
