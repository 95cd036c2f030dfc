"""What a server asks of an engine, and what it hears of the answer, whichever engine it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from emo_export.errors import EmoExportError
from emo_export.runtimes.sampling import Sampling


class UnservableError(EmoExportError):
    """A request that this model can't answer: its prompt is too long, or no text of its tokens."""


@dataclass(frozen=True)
class Wanted:
    """One request. `prompt` is a text, or token ids; empty, it is the token that begins a text.

    `seed` is below 2**32 - 1. `alternatives`: of the tokens of each place, how many are told with
    their log-probabilities; None tells none, not even of the chosen ones.
    """

    prompt: str | tuple[int, ...]
    sampling: Sampling
    max_tokens: int
    seed: int
    stop: tuple[str, ...] = ()
    alternatives: int | None = None


@dataclass(frozen=True)
class Likely:
    """A token as its bytes, and the natural logarithm of its probability before any filter."""

    piece: bytes
    log_probability: float


@dataclass(frozen=True)
class Chosen:
    """A token of the answer, and the likeliest ones of its place, the likeliest first."""

    token: Likely
    alternatives: tuple[Likely, ...]


@dataclass(frozen=True)
class Piece:
    """Text that was completed, and what was chosen for it, where that was asked for."""

    text: str
    chosen: tuple[Chosen, ...] = ()


@dataclass(frozen=True)
class Finish:
    """Why an answer is over: `stopped` by a token or a string, otherwise by its length."""

    stopped: bool
    prompt_tokens: int
    tokens: int


class Listener(Protocol):
    """Who waits for an answer, in another thread."""

    @property
    def gone(self) -> bool:
        """Whether nobody waits any more: the engine stops at its next step."""

    def hear(self, piece: Piece) -> None:
        """Take a piece; returns at once."""


class Answering(Protocol):
    """A model that answers in as many threads at once as it has `places`."""

    name: str
    places: int
    context_length: int

    def answer(self, wanted: Wanted, listener: Listener) -> Finish:
        """Answer to the end, or until the listener is gone.

        Raises UnservableError before the first piece, EmoExportError where the engine fails.
        """

    def close(self) -> None:
        """Free the model; no answer may be under way."""
