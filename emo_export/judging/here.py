"""The verdict on one target in this process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from emo_export.families import FAMILIES
from emo_export.interfaces import F32, Ids, Runtime, Tokenizer
from emo_export.parity.golden import Golden
from emo_export.parity.judge import tolerances, validate_target
from emo_export.parity.result import EXACT, NotCompared, Result
from emo_export.runtimes.opening import open_runtime, tokenizer_of
from emo_export.spec import Spec

Answered = Callable[[], None]


def judge(
    spec: Spec,
    path: Path,
    golden: Golden,
    threads: int | None = None,
    kv_cache: str | None = None,
    on_answer: Answered = lambda: None,
) -> Result:
    """Judge the target at a path with its engine, with float activations too where they differ.

    `on_answer` is called whenever the engine has opened something or computed logits. Raises
    EmoExportError when the engine can't open it.
    """

    def watched(opening: Callable[[], Runtime]) -> Runtime:
        on_answer()
        return _Watched(opening(), on_answer)

    def tokenizer(runtime: Runtime) -> Tokenizer:
        return tokenizer_of(path, runtime.inner if isinstance(runtime, _Watched) else runtime)

    shipped = partial(open_runtime, path, threads, parity=True)
    lossy = partial(open_runtime, path, threads, kv_cache=kv_cache) if kv_cache else None
    validate = partial(
        validate_target,
        spec,
        golden,
        partial(watched, shipped),
        tokenizer,
        open_lossy=partial(watched, lossy) if lossy else None,
    )
    if EXACT not in tolerances(spec):
        return validate()
    with FAMILIES[spec.family].exact(path, threads) as exact:
        if isinstance(exact, NotCompared):
            return validate(not_compared=exact)
        return validate(open_exact=partial(watched, exact))


class _Watched:
    """A runtime that tells of every answer."""

    def __init__(self, inner: Runtime, on_answer: Answered) -> None:
        self.inner, self._on_answer = inner, on_answer
        self.name, self.vocab_size = inner.name, inner.vocab_size
        self.context_length = inner.context_length
        on_answer()

    def forward(self, ids: Ids, *, last: bool = False) -> F32:
        """As Runtime.forward."""
        logits = self.inner.forward(ids, last=last)
        self._on_answer()
        return logits

    def reset(self) -> None:
        """As Runtime.reset."""
        self.inner.reset()

    def close(self) -> None:
        """As Runtime.close."""
        self.inner.close()

    def describe(self) -> Mapping[str, str]:
        """As Runtime.describe."""
        return self.inner.describe()
