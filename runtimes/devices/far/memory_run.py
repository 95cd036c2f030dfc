"""What a user's run of a model takes: opens it as `run` does, reads a prompt, writes some tokens.

    python -m emo_export.runtimes.devices.far.memory_run PATH --context N --tokens N [--threads N]
        [--kv-cache TYPE] [--timeout SECONDS]

Nothing that parity needs is in memory here (golden.npz, logits of all positions, a KV cache in
float32). It runs on the device or under its emulation; whoever started it looks at its memory. The
last line of stdout is JSON: `positions` that were in the KV cache, and `repacked` bytes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from emo_export.base.memory_mark import wait_to_be_seen
from emo_export.runtimes.devices.far.answer import answer
from emo_export.runtimes.families import family_at
from emo_export.runtimes.llama.model import REPACKED
from emo_export.runtimes.opening import open_runtime

STEPS = 4  # of decoding, after the prompt
SEED = 0


def run(
    path: Path, context: int, tokens: int, threads: int | None, kv_cache: str | None = None
) -> dict[str, int]:
    """Run it with at most `tokens` tokens of prompt, as many as the context has room for.

    They are random, so that they choose as many experts as they can. Raises EmoExportError when
    the engine refuses.
    """
    reserved = context if family_at(path).reserves_cache else None
    runtime = open_runtime(path, threads, context=reserved, kv_cache=kv_cache)
    try:
        count = max(1, min(tokens, context - STEPS))
        ids = np.random.default_rng(SEED).integers(0, runtime.vocab_size, count + STEPS)
        steps = min(STEPS, context - count)
        runtime.forward(ids[:count], last=True)
        for at in range(count, count + steps):
            runtime.forward(ids[at : at + 1], last=True)
        wait_to_be_seen()
        return {
            "positions": count + steps,
            "repacked": int(runtime.describe().get(REPACKED, 0)),
        }
    finally:
        runtime.close()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run and answer."""
    parser = argparse.ArgumentParser(prog="python -m emo_export.runtimes.devices.far.memory_run")
    parser.add_argument("path", type=Path)
    for name in ("--context", "--tokens"):
        parser.add_argument(name, type=int, required=True)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--kv-cache")
    parser.add_argument("--timeout", type=float, default=0)
    found = parser.parse_args(arguments)
    asked = (found.context, found.tokens, found.threads, found.kv_cache)
    return answer(lambda: run(found.path, *asked), found.timeout)


if __name__ == "__main__":
    sys.exit(main())
