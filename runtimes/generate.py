"""Text that follows a prompt: token by token, streamed as its UTF-8 completes."""

from __future__ import annotations

import codecs
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np

from emo_export.errors import EmoExportError
from emo_export.interfaces import F32, Ids, Runtime, Tokenizer
from emo_export.runtimes.sampling import Sampling, likeliest, log_probability, sample

# What a layer computes of every token at once takes memory: 256 tokens are as fast as more.
PREFILL_PIECE = 256


Unread = Callable[[Sequence[int]], Ids]
"""The ids (T,) of a prompt -> those that are not in the runtime's cache, which keeps the others."""


class End(Enum):
    """What ended a text."""

    STOP_TOKEN = "stop token"
    STOP_STRING = "stop string"
    LENGTH = "length"
    CONTEXT = "context"
    INTERRUPTED = "interrupted"


@dataclass(frozen=True)
class Said:
    """One token of an answer, and the text that it completes, which may be none or more.

    `token` is None for text that was held back until the end. `log_probability` (natural logarithm,
    before any filter) is None there, and where it was not asked for. `alternatives` are the
    likeliest tokens of its place and their log-probabilities, where they were asked for.
    """

    text: str
    token: int | None
    log_probability: float | None
    alternatives: tuple[tuple[int, float], ...] = ()


class Answer:
    """The text that follows a prompt, to be gone through once; see `generate`.

    Afterwards `end` says why it is over. Seconds are those of the engine and the choice of tokens;
    `read_tokens` are those of the prompt that were not in a cache already.
    """

    def __init__(
        self,
        runtime: Runtime,
        tokenizer: Tokenizer,
        prompt: Sequence[int],
        sampling: Sampling,
        max_tokens: int,
        seed: int,
        stop: Sequence[str],
        log_probabilities: bool,
        alternatives: int,
        unread: Unread | None,
    ) -> None:
        self.prompt_tokens, self.tokens, self.seed = len(prompt), 0, seed
        self.read_tokens = len(prompt)
        self.prefill_seconds = self.decode_seconds = 0.0
        self.end: End | None = None
        self._runtime, self._tokenizer, self._prompt = runtime, tokenizer, prompt
        self._unread = unread
        self._sampling, self._max_tokens, self._stop = sampling, max_tokens, stop
        self._log_probabilities, self._alternatives = log_probabilities, alternatives

    def __iter__(self) -> Iterator[Said]:
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        held = ""
        for token, logits in self._chosen():
            held += decoder.decode(self._tokenizer.piece(token))
            text, held, stopped = self._released(held)
            likely = log_probability(logits, token) if self._log_probabilities else None
            yield Said(text, token, likely, likeliest(logits, self._alternatives))
            if stopped:
                self.end = End.STOP_STRING
                return
        held += decoder.decode(b"", final=True)
        text, rest, stopped = self._released(held)
        if stopped:
            self.end = End.STOP_STRING
        if text or rest:
            yield Said(text if stopped else text + rest, None, None)

    def texts(self) -> Iterator[str]:
        """The text alone, in pieces."""
        for said in self:
            if said.text:
                yield said.text

    def _chosen(self) -> Iterator[tuple[int, F32]]:
        """Tokens, each chosen before the next is asked for, and the logits (V,) of their place."""
        self.end = End.LENGTH
        if self._max_tokens == 0:
            return
        rng, seen = np.random.default_rng(self.seed), list(self._prompt)
        began = time.perf_counter()
        logits = self._prefill()
        self.prefill_seconds = time.perf_counter() - began
        room = self._runtime.context_length - len(self._prompt)
        while True:
            began = time.perf_counter()
            token = sample(logits, self._sampling, rng, seen)
            if token in self._tokenizer.stop_ids:
                self.end = End.STOP_TOKEN
                return
            self.tokens += 1
            seen.append(token)
            self.decode_seconds += time.perf_counter() - began
            yield token, logits
            if self.tokens == self._max_tokens:
                return
            if self.tokens > room:
                self.end = End.CONTEXT
                return
            began = time.perf_counter()
            logits = self._runtime.forward(np.array([token], np.int64), last=True)[-1]
            self.decode_seconds += time.perf_counter() - began

    def _prefill(self) -> F32:
        """Read the prompt -> logits (V,) after its last token."""
        if self._unread is None:
            self._runtime.reset()
            ids = np.array(self._prompt, np.int64)
        else:
            ids = self._unread(self._prompt)
            self.read_tokens = len(ids)
        pieces = [ids[start : start + PREFILL_PIECE] for start in range(0, len(ids), PREFILL_PIECE)]
        for piece in pieces[:-1]:
            self._runtime.forward(piece, last=True)
        last: F32 = self._runtime.forward(pieces[-1], last=True)[-1]
        return last

    def _released(self, text: str) -> tuple[str, str, bool]:
        """What may be shown of a text, what may yet become a stop string, and whether one came."""
        if not self._stop:
            return text, "", False
        found = [at for stop in self._stop if (at := text.find(stop)) >= 0]
        if found:
            return text[: min(found)], "", True
        longest = max(
            (
                size
                for stop in self._stop
                for size in range(1, min(len(stop), len(text) + 1))
                if text.endswith(stop[:size])
            ),
            default=0,
        )
        return text[: len(text) - longest], text[len(text) - longest :], False


def generate(
    runtime: Runtime,
    tokenizer: Tokenizer,
    prompt_ids: Sequence[int],
    sampling: Sampling,
    *,
    max_tokens: int,
    seed: int | None = None,
    stop: Sequence[str] = (),
    log_probabilities: bool = False,
    alternatives: int = 0,
    unread: Unread | None = None,
) -> Answer:
    """Text that follows the prompt, token by token as they come.

    It ends at a token of `stop_ids` (which gives no text), before one of the strings `stop`, after
    `max_tokens`, or where the context is full. Without a `seed` one is drawn, which the answer
    tells. The runtime's cache is emptied first, or `unread` says what of it is kept.
    An empty prompt begins with the lowest of the tokenizer's stop tokens, the one that separates
    texts in training.
    Raises EmoExportError for arguments out of range and for a prompt that exceeds the context.
    """
    if max_tokens < 0 or (seed is not None and seed < 0):
        raise EmoExportError(f"max_tokens is {max_tokens}, seed {seed}: expected 0 or more")
    if "" in stop:
        raise EmoExportError("a stop string is empty: it would end the text before it begins")
    prompt = list(prompt_ids) or sorted(tokenizer.stop_ids)[:1]
    if not prompt:
        raise EmoExportError("the prompt is empty and the model has no token to begin a text with")
    if len(prompt) > runtime.context_length:
        raise EmoExportError(
            f"the prompt has {len(prompt)} tokens, the context {runtime.context_length}: shorten "
            "it, or export with a larger --context where the model's allows it"
        )
    if seed is None:
        seed = int(np.random.default_rng().integers(1 << 32))
    return Answer(
        runtime,
        tokenizer,
        prompt,
        sampling,
        max_tokens,
        seed,
        tuple(stop),
        log_probabilities,
        alternatives,
        unread,
    )
