"""What the types of the KV cache cost emo-nano, and how long attention takes with each.

    python -m tests.bench.kv_cache [--tokens N] [--depth N] [--rounds N]

Loss: a target of emo-nano on held-out text, beside itself with a float32 cache and beside the float
original. Time: a layer as wide as the released model's (16 heads of 128) with hardly any experts,
a step behind `--depth` tokens on one thread, the least of all rounds.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import click
import numpy as np

from emo_export.files.kv_cache import KV_CACHES
from emo_export.interfaces import F32, Runtime
from emo_export.model.checkpoint import Checkpoint
from emo_export.parity.golden import log_softmax
from emo_export.reference.probes import HELDOUT
from emo_export.runtimes.families import family_at
from emo_export.runtimes.loading import first_that_runs
from emo_export.runtimes.opening import open_runtime
from tests.bench.quality import Original, original
from tests.bench.synthetic import Size, write_checkpoint
from tests.kit.command import run_here
from tests.kit.paths import NANO

STEPS = 16


def log_probs(runtime: Runtime, reference: Original) -> list[F32]:
    """Of each sequence: (T, V)."""
    found = []
    for ids in reference.sequences:
        runtime.reset()
        found.append(log_softmax(runtime.forward(ids)))
    runtime.close()
    return found


def kl(before: list[F32], after: list[F32]) -> float:
    """The mean over all positions, in nats."""
    each = [(np.exp(p) * (p - q)).sum(-1) for p, q in zip(before, after, strict=True)]
    return float(np.concatenate(each).mean())


def perplexity(found: list[F32], reference: Original) -> float:
    """Of the text itself."""
    pairs = zip(found, reference.sequences, strict=True)
    nll = [-np.take_along_axis(p[:-1], ids[1:, None], -1) for p, ids in pairs]
    return float(np.exp(np.concatenate(nll).mean()))


def print_losses(folder: Path, tokens: int) -> None:
    """A line for each type of weights and of cache."""
    reference = original(tokens)
    base = perplexity(reference.log_probs, reference)
    print(f"emo-nano, {reference.tokens} tokens of held-out text, context {HELDOUT}")
    print("| weights | cache | bytes a position | KL, f32 cache | KL, original | ppl × |")
    for target in ("gguf:f32", "gguf:q8_0", "gguf:q4_0", "onnx:f32", "onnx:int8", "onnx:int4"):
        path = made(NANO, folder / target, target)
        exact: list[F32] = []
        for cache in _caches(path):
            runtime = open_runtime(path, 1, context=HELDOUT, kv_cache=cache)
            found = log_probs(runtime, reference)
            exact = exact or found
            cells = [target, cache, str(family_at(path).need(path, None, cache).per_position)]
            cells += [f"{kl(each, found):.2e}" for each in (exact, reference.log_probs)]
            print("| " + " | ".join([*cells, f"{perplexity(found, reference) / base:.4f}"]) + " |")


def print_times(folder: Path, depth: int, rounds: int) -> None:
    """Milliseconds of a step, and of a prompt of as many tokens."""
    size = Size(hidden=2048, width=64, layers=1, experts=8, vocab=512)
    write_checkpoint(folder / "wide", size)
    assert Checkpoint.open(folder / "wide").config.head_dim == 128
    ids = np.random.default_rng(0).integers(0, size.vocab, depth + STEPS * rounds)
    opened = {}
    for target in ("gguf:q8_0", "onnx:int8"):
        path = made(folder / "wide", folder / "of the wide" / target, target)
        opened |= {
            f"{target} | {cache}": open_runtime(path, 1, kv_cache=cache) for cache in _caches(path)
        }
    print(f"one layer 2048 wide, 16 heads of 128, {depth} tokens in the cache, one thread")
    print("| target | cache | ms a step | ms an empty cache's step | s of the prompt |")
    empty, prompt, steps = (dict.fromkeys(opened, np.inf) for _ in range(3))
    for cache, runtime in opened.items():
        for at in range(STEPS):
            empty[cache] = min(empty[cache], _seconds(runtime, ids[at : at + 1]))
        runtime.reset()
        prompt[cache] = _seconds(runtime, ids[:depth])
    for start in range(depth, len(ids), STEPS):
        for cache, runtime in opened.items():
            for at in range(start, start + STEPS):
                steps[cache] = min(steps[cache], _seconds(runtime, ids[at : at + 1]))
    for cache, runtime in opened.items():
        runtime.close()
        times = (1e3 * steps[cache], 1e3 * empty[cache], prompt[cache])
        print(f"| {cache} | " + " | ".join(f"{seconds:.2f}" for seconds in times) + " |")


def made(checkpoint: Path, folder: Path, target: str) -> Path:
    """The file or folder of a target."""
    folder.parent.mkdir(exist_ok=True)
    done = run_here("export", checkpoint, "-o", folder, "--to", target, "--no-golden")
    if done.code:
        raise RuntimeError(done.err)
    return first_that_runs(folder)


def _caches(path: Path) -> list[str]:
    return [cache for cache in KV_CACHES if cache in family_at(path).kv_caches]


def _seconds(runtime: Runtime, ids: np.ndarray) -> float:
    start = time.perf_counter()
    runtime.forward(ids, last=True)
    return time.perf_counter() - start


@click.command()
@click.option("--tokens", default=6000, show_default=True)
@click.option("--depth", default=4000, show_default=True)
@click.option("--rounds", default=5, show_default=True)
def main(tokens: int, depth: int, rounds: int) -> None:
    """Print both tables."""
    with tempfile.TemporaryDirectory() as name:
        print_losses(Path(name), tokens)
        print_times(Path(name), depth, rounds)


if __name__ == "__main__":
    main()
