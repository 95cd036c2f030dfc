"""An exported model that is open and ready to run: token ids to logits, a text to its end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np

from emo_export.interfaces import F32, Rewinding
from emo_export.runtimes.generate import Answer, generate
from emo_export.runtimes.opening import missing_engine, open_runtime, tokenizer_of
from emo_export.runtimes.package import chosen_targets
from emo_export.runtimes.remembering import Remembering
from emo_export.runtimes.sampling import Sampling


class Model:
    """A model in its engine, with its tokenizer. Close it, or use it in a `with`."""

    def __init__(self, path: Path, runtime: Rewinding) -> None:
        """`path` is the .gguf file or ONNX folder that `runtime` has open."""
        self.path, self.runtime = path, runtime
        self.memory: Remembering | None = None
        """Set, answers go on from what its cache has of their prompt."""

    def logits(self, ids: Sequence[int]) -> F32:
        """Token ids (T,), from an empty context -> logits (T, V) float32.

        Raises EmoExportError for more ids than the context has positions.
        """
        self.runtime.reset()
        return self.runtime.forward(np.array(ids, np.int64))

    def text(
        self,
        prompt: str,
        *,
        max_tokens: int = 128,
        temperature: float = 0.7,
        top_p: float = 0.95,
        seed: int | None = None,
        stop: Sequence[str] = (),
    ) -> Iterator[str]:
        """The text that follows a prompt, in pieces as they come; `temperature` 0 is greedy.

        As `answer`, whose Sampling has more to set.
        """
        sampling = Sampling(temperature=temperature, top_p=top_p)
        return self.answer(prompt, sampling, max_tokens=max_tokens, seed=seed, stop=stop).texts()

    def answer(
        self,
        prompt: str,
        sampling: Sampling,
        *,
        max_tokens: int = 128,
        seed: int | None = None,
        stop: Sequence[str] = (),
        log_probabilities: bool = False,
    ) -> Answer:
        """What follows a prompt, token by token as they come.

        It ends at the end-of-text token, before one of the strings `stop`, after `max_tokens`, or
        where the context is full; without `seed` it is another each time. Raises EmoExportError for
        a model without tokenizer and for arguments out of range.
        """
        tokenizer = tokenizer_of(self.path, self.runtime)
        return generate(
            self.memory or self.runtime,
            tokenizer,
            tokenizer.encode(prompt),
            sampling,
            max_tokens=max_tokens,
            seed=seed,
            stop=stop,
            log_probabilities=log_probabilities,
            unread=self.memory.unread if self.memory else None,
        )

    def close(self) -> None:
        """Free the model."""
        self.runtime.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def load(
    path: Path,
    target: str | None = None,
    threads: int | None = None,
    kv_cache: str | None = None,
) -> Model:
    """Open a model: see emo_export.load."""
    place = first_that_runs(path, target)
    return Model(place, open_runtime(place, threads, kv_cache=kv_cache))


def first_that_runs(path: Path, target: str | None = None) -> Path:
    """The target asked for, else the first whose engine is installed, else the first."""
    folder, targets = chosen_targets(path, [target] if target else [])
    ready = [name for name, entry in targets.items() if not missing_engine(entry.spec.family)]
    spec = (ready or list(targets))[0]
    return folder / targets[spec].path
