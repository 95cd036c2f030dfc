"""Decode through `chat` beside the engine's own loop.

    python -m tests.bench.chatting [--rounds 9] [--tokens 96] [--hidden 1024]

emo-nano, and a checkpoint of random weights whose tokens take about as long as a device's. By
turns: the engine's own loop (a step, the likeliest token), and what `chat` does for an answer,
greedy, its text written to nowhere. Medians of tokens per second, and of their
ratio by round with its smallest and largest.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import numpy as np

from emo_export import export
from emo_export.cli.run import put_piece
from emo_export.interfaces import Rewinding, Tokenizer
from emo_export.runtimes.generate import generate
from emo_export.runtimes.history import PlainHistory, fitted
from emo_export.runtimes.loading import first_that_runs
from emo_export.runtimes.opening import open_runtime, tokenizer_of
from emo_export.runtimes.remembering import Remembering
from emo_export.runtimes.sampling import GREEDY
from tests.bench.synthetic import Size, write_checkpoint
from tests.kit.paths import NANO

TARGETS = ("gguf:q4_0", "onnx:int4")
PROMPT = "In the beginning God created"
COLUMNS = ("model", "target", "own loop tok/s", "chat tok/s", "of the loop", "by round")


def own_loop(runtime: Rewinding, ids: list[int], tokens: int) -> float:
    """Tokens per second after the prompt."""
    runtime.reset()
    token = int(runtime.forward(np.array(ids), last=True)[-1].argmax())
    began = time.perf_counter()
    for _ in range(tokens):
        token = int(runtime.forward(np.array([token]), last=True)[-1].argmax())
    return tokens / (time.perf_counter() - began)


def chatted(memory: Remembering, tokenizer: Tokenizer, tokens: int) -> float:
    """The same through a chat's turn; the prompt is read once more each time."""
    memory.reset()
    history = PlainHistory(tokenizer, "")
    history.add(PROMPT)
    prompt, _ = fitted(history, memory.context_length, tokens)
    answer = generate(
        memory, tokenizer, prompt, GREEDY, max_tokens=tokens + 1, unread=memory.unread
    )
    began = 0.0
    for said in answer:
        began = began or time.perf_counter()  # the first is of the prompt
        put_piece(said.text)
    return (answer.tokens - 1) / (time.perf_counter() - began)


@contextmanager
def thrown_away() -> Iterator[None]:
    """Stdout goes nowhere."""
    before = sys.stdout
    with open(os.devnull, "w", encoding="utf-8") as nowhere:  # noqa: PTH123 - as stdout is
        sys.stdout = nowhere
        try:
            yield
        finally:
            sys.stdout = before


def measured(path: Path, rounds: int, tokens: int) -> tuple[list[float], list[float]]:
    """Of each round, by turns: the engine's own loop, and chat."""
    runtime = open_runtime(path, None)
    tokenizer = tokenizer_of(path, runtime)
    memory, ids = Remembering(runtime), tokenizer.encode(PROMPT)
    own, chat = [], []
    for _ in range(rounds):
        own.append(own_loop(runtime, ids, tokens))
        with thrown_away():
            chat.append(chatted(memory, tokenizer, tokens))
    runtime.close()
    return own, chat


@click.command()
@click.option("--rounds", default=9, show_default=True)
@click.option("--tokens", default=96, show_default=True)
@click.option("--hidden", default=1024, show_default=True, help="Of the random one; width half.")
def main(rounds: int, tokens: int, hidden: int) -> None:
    """Compare."""
    click.echo("| " + " | ".join(COLUMNS) + " |")
    with tempfile.TemporaryDirectory(prefix="emo-chatting-") as name:
        random = Path(name) / "random"
        write_checkpoint(random, Size(hidden, hidden // 2, 8, 32, 32768))
        for title, checkpoint in (("emo-nano", NANO), (f"random, {hidden} wide", random)):
            out = Path(name) / title
            export(checkpoint, out, list(TARGETS), golden=False)
            for target in TARGETS:
                own, chat = measured(first_that_runs(out, target), rounds, tokens)
                ratios = [b / a for a, b in zip(own, chat, strict=True)]
                cells = [title, target, f"{statistics.median(own):.1f}"]
                cells += [f"{statistics.median(chat):.1f}", f"{statistics.median(ratios):.3f}"]
                cells += [f"{min(ratios):.3f} to {max(ratios):.3f}"]
                click.echo("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
