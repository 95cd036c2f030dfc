"""The next token from logits, in numpy."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from emo_export.errors import EmoExportError
from emo_export.interfaces import F32

F64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Sampling:
    """How a token is drawn; the filters apply in the order of the fields.

    `repetition_penalty` (arXiv 1909.05858) divides the positive logits of tokens that were said or
    read, and multiplies their negative ones. `temperature` 0 takes the likeliest token, the lowest
    id on ties. `top_k` keeps so many of the likeliest (0: all), `top_p` the fewest whose
    probabilities reach it (arXiv 1904.09751), `min_p` those of at least that share of the
    likeliest's probability (arXiv 2407.01082).
    """

    repetition_penalty: float = 1.0
    temperature: float = 0.7
    top_k: int = 0
    top_p: float = 0.95
    min_p: float = 0.0

    def __post_init__(self) -> None:
        """Raises EmoExportError for a value out of range."""
        for name, value, fits, expected in (
            ("repetition_penalty", self.repetition_penalty, self.repetition_penalty > 0, "above 0"),
            ("temperature", self.temperature, self.temperature >= 0, "0 or more"),
            ("top_k", self.top_k, self.top_k >= 0, "0 or more"),
            ("top_p", self.top_p, 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("min_p", self.min_p, 0 <= self.min_p <= 1, "0 to 1"),
        ):
            if not fits or value == float("inf"):
                raise EmoExportError(f"{name} is {value}, expected {expected}")


GREEDY = Sampling(temperature=0.0)


def sample(
    logits: F32, sampling: Sampling, rng: np.random.Generator, seen: Iterable[int] = ()
) -> int:
    """Choose a token from logits (V,); `seen` are the ids that were said or read before.

    Raises EmoExportError for logits without a largest number.
    """
    first = int(logits.argmax())  # the first NaN, if there is any
    best = logits[first]
    if not np.isfinite(best):
        raise EmoExportError(f"the logits have the maximum {best}: the model's file is broken")
    if sampling.repetition_penalty != 1:
        logits = _penalised(logits, sampling.repetition_penalty, seen)
        first = int(logits.argmax())
        best = logits[first]
        if not np.isfinite(best):
            raise EmoExportError(
                f"repetition_penalty is {sampling.repetition_penalty}, with which logits are {best}"
            )
    if sampling.temperature == 0:
        return first
    with np.errstate(
        over="ignore", divide="ignore", invalid="ignore"
    ):  # a tiny temperature: -inf, so probability 0
        weights = np.exp((logits.astype(np.float64) - best) / sampling.temperature)
    tokens = _kept(weights, sampling)
    cumulative = np.cumsum(weights[tokens])
    point = rng.random() * cumulative[-1]
    chosen = int(np.searchsorted(cumulative, point, side="right"))
    return int(tokens[min(chosen, len(tokens) - 1)])


def log_probability(logits: F32, token: int) -> float:
    """Natural logarithm of a token's probability by logits (V,), before any filter."""
    shifted = logits.astype(np.float64) - logits.max()
    return float(shifted[token] - np.log(np.exp(shifted).sum()))


def likeliest(logits: F32, count: int) -> tuple[tuple[int, float], ...]:
    """The `count` likeliest tokens by logits (V,) and their log-probabilities, likeliest first."""
    if count == 0:
        return ()
    count = min(count, len(logits))
    found = np.argpartition(-logits, count - 1)[:count]
    found = found[np.argsort(-logits[found], kind="stable")]
    shifted = logits.astype(np.float64) - logits.max()
    total = np.log(np.exp(shifted).sum())
    return tuple((int(token), float(shifted[token] - total)) for token in found)


def _penalised(logits: F32, penalty: float, seen: Iterable[int]) -> F32:
    ids = np.unique(np.fromiter(seen, np.int64))
    changed = logits.copy()
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        changed[ids] = np.where(changed[ids] > 0, changed[ids] / penalty, changed[ids] * penalty)
    return changed


def _kept(weights: F64, sampling: Sampling) -> npt.NDArray[np.int64]:
    """The ids that may be drawn, by weights (V,) of which the largest is 1."""
    tokens = np.flatnonzero(weights)
    if 0 < sampling.top_k < len(tokens):
        order = np.argsort(-weights[tokens], kind="stable")
        tokens = tokens[order[: sampling.top_k]]
    if sampling.top_p < 1:
        # Tokens that are each no likelier than this are together no likelier than what is cut off,
        # so the sort can leave them out: it would otherwise take longer than a layer.
        total = weights[tokens].sum()
        least = total * (1 - sampling.top_p) / len(tokens)
        tokens = tokens[weights[tokens] > least]
        tokens = tokens[np.argsort(-weights[tokens], kind="stable")]
        reached = np.cumsum(weights[tokens]) >= sampling.top_p * total
        if reached.any():  # rounding may leave the last sum below
            tokens = tokens[: int(reached.argmax()) + 1]
    return tokens[weights[tokens] >= sampling.min_p]
