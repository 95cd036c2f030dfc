"""The work of `run`, `inspect` and `doctor`: what they print."""

from __future__ import annotations

import sys
from pathlib import Path

from emo_export.artifact import choose_artifact
from emo_export.cli_targets import open_runtime, tokenizer_of


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
