"""A model opened to answer requests: in llama.cpp's server, or one answer after another."""

from __future__ import annotations

from pathlib import Path

from emo_export.base.llama_library import own_library
from emo_export.base.threads import physical_cores
from emo_export.errors import EmoExportError
from emo_export.files.memory_need import Need
from emo_export.interfaces import F32, Ids, Runtime, Tokenizer
from emo_export.runtimes.families import family_at
from emo_export.runtimes.generate import End, Said, generate
from emo_export.runtimes.llama.family import check_file
from emo_export.runtimes.opening import fitting_threads, open_runtime, tokenizer_of
from emo_export.runtimes.serving import (
    Answering,
    Chosen,
    Finish,
    Likely,
    Listener,
    Piece,
    UnservableError,
    Wanted,
)

PLACES = 4
"""Sequences that llama.cpp computes at once; each has a KV cache of its own."""


class OneByOne:
    """An engine with one sequence, which answers one request at a time."""

    places = 1

    def __init__(self, path: Path, runtime: Runtime) -> None:
        """`path` is what `runtime` has open. Raises EmoExportError without a tokenizer."""
        self.name, self.context_length = runtime.name, runtime.context_length
        self._runtime = runtime
        self._tokenizer: Tokenizer = tokenizer_of(path, runtime)

    def answer(self, wanted: Wanted, listener: Listener) -> Finish:
        """See Answering."""
        prompt = wanted.prompt
        ids = self._tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
        if len(ids) >= self.context_length:
            raise UnservableError(
                f"the prompt has {len(ids)} tokens, the context {self.context_length}, of which "
                "one is for the answer"
            )
        if ids and max(ids) >= self._runtime.vocab_size:
            raise UnservableError(
                f"the prompt has the token {max(ids)}; the model has {self._runtime.vocab_size}"
            )
        answer = generate(
            _Watched(self._runtime, listener),
            self._tokenizer,
            ids,
            wanted.sampling,
            max_tokens=wanted.max_tokens,
            seed=wanted.seed,
            stop=wanted.stop,
            log_probabilities=wanted.alternatives is not None,
            alternatives=wanted.alternatives or 0,
        )
        try:
            for said in answer:
                if listener.gone:
                    break
                listener.hear(self._piece(said))
        except _GoneError:
            pass
        stopped = answer.end in (End.STOP_TOKEN, End.STOP_STRING)
        return Finish(stopped, answer.prompt_tokens, answer.tokens)

    def _piece(self, said: Said) -> Piece:
        if said.token is None or said.log_probability is None:
            return Piece(said.text)
        token = Likely(self._tokenizer.piece(said.token), said.log_probability)
        others = tuple(Likely(self._tokenizer.piece(one), at) for one, at in said.alternatives)
        return Piece(said.text, (Chosen(token, others),))

    def close(self) -> None:
        """Free the model."""
        self._runtime.close()


class _GoneError(Exception):
    """Nobody waits for the answer any more."""


class _Watched:
    """A runtime that stops before a step for which nobody waits."""

    def __init__(self, runtime: Runtime, listener: Listener) -> None:
        self._runtime, self._listener = runtime, listener
        self.name, self.vocab_size = runtime.name, runtime.vocab_size
        self.context_length = runtime.context_length
        self.reset, self.close = runtime.reset, runtime.close
        self.describe = runtime.describe

    def forward(self, ids: Ids, *, last: bool = False) -> F32:
        if self._listener.gone:
            raise _GoneError
        return self._runtime.forward(ids, last=last)


def places_of(path: Path, asked: int | None) -> int:
    """How many answers at once the target at a path can give, or those `asked` for.

    Raises EmoExportError where its engine can't.
    """
    if family_at(path).reserves_cache and own_library() is None:
        return asked or PLACES
    if asked not in (None, 1):
        raise EmoExportError(
            f"{path}: --parallel {asked} is for GGUF targets in xllamacpp's llama.cpp; here one "
            "request is answered after another, and more wait (--queue)"
        )
    return 1


def open_answering(
    path: Path, need: Need, places: int, threads: int | None, kv_cache: str | None
) -> Answering:
    """Open the target at a path; `need` has the context of each of its `places`.

    Raises EmoExportError for a target that its engine refuses.
    """
    family = family_at(path)
    if family.reserves_cache and own_library() is None:
        from emo_export.runtimes.llama.server import LlamaServer

        check_file(path)
        return LlamaServer(
            path,
            threads=fitting_threads(path, threads) or physical_cores(),
            places=places,
            context=need.context,
            kv_cache=kv_cache,
        )
    runtime = open_runtime(path, threads, context=need.context, kv_cache=kv_cache)
    try:
        return OneByOne(path, runtime)
    except BaseException:
        runtime.close()
        raise
