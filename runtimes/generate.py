"""Text from logits: sampling in numpy, and streaming of text as its UTF-8 completes."""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Sequence

import numpy as np

from emo_export.errors import EmoExportError
from emo_export.interfaces import F32, Runtime, Tokenizer

# What a layer computes of every token at once takes memory: 256 tokens are as fast as more.
PREFILL_PIECE = 256


def sample(logits: F32, *, temperature: float, top_p: float, rng: np.random.Generator) -> int:
    """Choose a token from logits (V,).

    `temperature` 0 takes the largest (the lowest id on ties). Otherwise softmax(logits /
    temperature), cut to the fewest most likely tokens whose probabilities reach `top_p`.
    Raises EmoExportError for arguments out of range and for logits without a largest number.
    """
    _check_settings(temperature, top_p)
    best = logits.max()
    if not np.isfinite(best):  # also when any is NaN
        raise EmoExportError(f"the logits have the maximum {best}: the model's file is broken")
    if temperature == 0:
        return int(logits.argmax())
    with np.errstate(over="ignore"):  # a tiny temperature: -inf, so probability 0
        weights = np.exp((logits.astype(np.float64) - best) / temperature)
    # Tokens that are each no likelier than this are together no likelier than what is cut off, so
    # the sort can leave them out: it would otherwise take longer than a layer.
    least = weights.sum() * (1 - top_p) / len(weights)
    tokens = np.flatnonzero(weights > least)
    if top_p < 1:
        tokens = tokens[np.argsort(-weights[tokens], kind="stable")]
        reached = np.cumsum(weights[tokens]) >= top_p * weights.sum()
        if reached.any():  # rounding may leave the last sum below
            tokens = tokens[: int(reached.argmax()) + 1]
    cumulative = np.cumsum(weights[tokens])
    point = rng.random() * cumulative[-1]
    chosen = int(np.searchsorted(cumulative, point, side="right"))
    return int(tokens[min(chosen, len(tokens) - 1)])


def generate(
    runtime: Runtime,
    tokenizer: Tokenizer,
    prompt_ids: Sequence[int],
    *,
    max_tokens: int,
    temperature: float,
    top_p: float,
    seed: int,
) -> Iterator[str]:
    """Text that follows the prompt, in pieces as they come.

    It ends at a token of `stop_ids` (which gives no text), after `max_tokens`, or where the
    context is full. The runtime's cache is emptied first. An empty prompt begins with the lowest
    of the tokenizer's stop tokens, the one that separates texts in training.
    Raises EmoExportError for arguments out of range and for a prompt that exceeds the context.
    """
    _check_settings(temperature, top_p)
    if max_tokens < 0 or seed < 0:
        raise EmoExportError(f"max_tokens is {max_tokens}, seed {seed}: expected 0 or more")
    prompt = list(prompt_ids) or sorted(tokenizer.stop_ids)[:1]
    if not prompt:
        raise EmoExportError("the prompt is empty and the model has no token to begin a text with")
    if len(prompt) > runtime.context_length:
        raise EmoExportError(
            f"the prompt has {len(prompt)} tokens, the context {runtime.context_length}"
        )
    rng = np.random.default_rng(seed)
    tokens = _tokens(runtime, prompt, max_tokens, temperature, top_p, rng, tokenizer.stop_ids)
    return _texts(tokens, tokenizer)


def _tokens(
    runtime: Runtime,
    prompt: Sequence[int],
    max_tokens: int,
    temperature: float,
    top_p: float,
    rng: np.random.Generator,
    stop_ids: frozenset[int],
) -> Iterator[int]:
    """Up to `max_tokens` tokens after the prompt, each chosen before the next is asked for."""
    if max_tokens == 0:
        return
    logits = _prefill(runtime, prompt)
    room = runtime.context_length - len(prompt)
    for produced in range(max_tokens):
        token = sample(logits, temperature=temperature, top_p=top_p, rng=rng)
        if token in stop_ids:
            return
        yield token
        if produced == room or produced + 1 == max_tokens:
            return
        logits = runtime.forward(np.array([token], np.int64), last=True)[-1]


def _prefill(runtime: Runtime, prompt: Sequence[int]) -> F32:
    """Run the prompt from an empty cache -> logits (V,) after its last token."""
    runtime.reset()
    ids = np.array(prompt, np.int64)
    pieces = [ids[start : start + PREFILL_PIECE] for start in range(0, len(ids), PREFILL_PIECE)]
    for piece in pieces[:-1]:
        runtime.forward(piece, last=True)
    last: F32 = runtime.forward(pieces[-1], last=True)[-1]
    return last


def _texts(tokens: Iterator[int], tokenizer: Tokenizer) -> Iterator[str]:
    """The tokens' bytes as text, held back while a character is incomplete."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    for token in tokens:
        if text := decoder.decode(tokenizer.piece(token)):
            yield text
    if text := decoder.decode(b"", final=True):
        yield text


def _check_settings(temperature: float, top_p: float) -> None:
    if not 0 <= temperature < float("inf"):
        raise EmoExportError(f"temperature is {temperature}, expected 0 or more")
    if not 0 < top_p <= 1:
        raise EmoExportError(f"top_p is {top_p}, expected above 0 and at most 1")
