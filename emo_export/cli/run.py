"""The work of `run`: what it prints."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from emo_export.base.process_memory import peak_resident
from emo_export.base.shown import shown
from emo_export.cli.output import say
from emo_export.cli.targets import OnnxSettings, open_with
from emo_export.errors import EmoExportError
from emo_export.runtimes.generate import Answer, End, Said
from emo_export.runtimes.loading import Model, first_that_runs
from emo_export.runtimes.prompt_cache import load, save
from emo_export.runtimes.remembering import Remembering
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
    prompt_cache: Path | None,
    in_json: bool,
    quiet: bool,
) -> None:
    """Stream text to stdout as it comes, or an event in JSON for each token."""
    path = first_that_runs(path, target)
    runtime = open_with(path, threads, settings, kv_cache)
    with Model(path, runtime) as model:
        memory = None if prompt_cache is None else begun(prompt_cache, path, model)
        answer = model.answer(
            asked.prompt,
            asked.sampling,
            max_tokens=asked.max_tokens,
            seed=asked.seed,
            stop=asked.stop,
            log_probabilities=asked.logprobs,
        )
        for said in answer:
            if in_json:
                put_event(said, asked.logprobs)
            else:
                put_piece(said.text)
        if in_json:
            put_end(answer)
        else:
            put_piece("\n")
        if prompt_cache is not None and memory is not None:
            keep(prompt_cache, path, memory, answer.prompt_tokens, answer.read_tokens)
        if in_json:
            return
        if answer.end == End.CONTEXT:
            say(
                f"the context is full: {model.runtime.context_length} positions hold the prompt "
                "and what was written"
            )
        if not quiet:
            say(figures(answer))


def put_piece(piece: str) -> None:
    """Show text at once: a terminal obeys what it reads; a file or a pipe gets it as it is."""
    sys.stdout.write(shown(piece) if sys.stdout.isatty() else piece)
    sys.stdout.flush()


def begun(
    file: Path, path: Path, model: Model, interrupted: Callable[[], bool] = lambda: False
) -> Remembering:
    """Let a model begin with what a prompt cache has, if it is of this model.

    Raises EmoExportError for one that can't be read, or that could not be written in the end.
    """
    if not file.exists() and not os.access(file.resolve().parent, os.W_OK | os.X_OK):
        raise EmoExportError(f"{file}: can't be written: no folder there, or no right to")
    model.memory = memory = Remembering(model.runtime, interrupted)
    if file.exists() and (why := load(file, path, memory)):
        say(f"{file}: {why}; the prompt is read anew")
    return memory


def keep(file: Path, path: Path, memory: Remembering, length: int, read: int) -> None:
    """Write a prompt cache of so many positions, of which `read` were not in it before."""
    if 1 < length <= len(memory.ids) and (read > 1 or not file.exists()):
        save(file, path, memory, length)


def figures(answer: Answer) -> str:
    """Speed, memory and seed of an answer that is over, on a line."""
    read = _rate(answer.read_tokens, answer.prefill_seconds)
    # The first token is chosen from what the prompt gave: no step of the model was made for it.
    written = _rate(answer.tokens - 1, answer.decode_seconds)
    memory = peak_resident()
    parts = [
        f"{answer.read_tokens} tokens read{read}",
        f"{answer.tokens} written{written}",
        *([] if memory is None else [f"{memory / 1e6:.0f} MB at most"]),
        f"seed {answer.seed}",
    ]
    return ", ".join(parts)


def _rate(tokens: int, seconds: float) -> str:
    return f" at {tokens / seconds:.1f}/s" if tokens > 0 and seconds > 0 else ""


def put_event(said: Said, logprobs: bool) -> None:
    """A line of JSON for a token."""
    event: dict[str, Any] = {"event": "token", "id": said.token, "text": said.text}
    if logprobs:
        event["logprob"] = said.log_probability
    click.echo(json.dumps(event))
    sys.stdout.flush()


def put_end(answer: Answer) -> None:
    """A line of JSON for the end of an answer."""
    if answer.end is None:
        raise RuntimeError("an answer ended without a reason")
    event = {
        "event": "end",
        "reason": answer.end.value,
        "prompt_tokens": answer.prompt_tokens,
        "read_tokens": answer.read_tokens,
        "tokens": answer.tokens,
        "prefill_seconds": answer.prefill_seconds,
        "decode_seconds": answer.decode_seconds,
        "peak_memory_bytes": peak_resident(),
        "seed": answer.seed,
    }
    click.echo(json.dumps(event))
    sys.stdout.flush()


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
