"""What the tokens at hand say of a mean: where much more text of this kind would put it.

A perplexity ratio is paired by token: both models score the same tokens, so what counts is the
spread of the differences. Tokens of one sequence hang together; where there are enough sequences,
the sequences are what is independent (the cluster-robust standard error of a mean, Cameron and
Miller, "A Practitioner's Guide to Cluster-Robust Inference", 2015, section II).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from emo_export.interfaces import F32
from emo_export.parity.golden import F64, clear_positions, kl_divergence

LEAST_SEQUENCES = 10  # below, a spread over sequences is itself a guess
TOKENS, SEQUENCES = "tokens", "sequences"
LARGEST = 700.0  # a logarithm whose exp is a float
_Z = NormalDist().inv_cdf(0.975)


@dataclass(frozen=True)
class Interval:
    """The 95% confidence interval of a figure.

    `tokens` were scored; `independent` says what the standard error was taken over: `tokens`, or
    `sequences` where there are at least LEAST_SEQUENCES.
    """

    low: float
    high: float
    tokens: int
    independent: str


@dataclass(frozen=True)
class Spread:
    """A mean over `tokens` tokens and its standard error, over `units` tokens or sequences."""

    mean: float
    stderr: float
    tokens: int
    units: int
    independent: str


def spread(values: F64) -> Spread | None:
    """Of a mean over (n sequences, T tokens); NaN: not scored.

    None where there is none: fewer than two tokens, or values that are infinite.
    """
    scored = ~np.isnan(values)
    tokens = int(scored.sum())
    if tokens < 2 or np.isinf(values).any():
        return None
    mean = float(values[scored].mean())
    rest = np.where(scored, values - mean, 0.0)
    clustered = int(scored.any(axis=1).sum()) >= LEAST_SEQUENCES
    parts = rest.sum(axis=1)[scored.any(axis=1)] if clustered else rest[scored]
    units = len(parts)
    error = math.sqrt(units / (units - 1) * float((parts**2).sum())) / tokens
    return Spread(mean, error, tokens, units, SEQUENCES if clustered else TOKENS)


def mean_interval(values: F64) -> Interval | None:
    """The interval of such a mean; None where there is none."""
    found = spread(values)
    if found is None:
        return None
    reach = student(found.units - 1) * found.stderr
    return Interval(found.mean - reach, found.mean + reach, found.tokens, found.independent)


def ratio_interval(nll: F32, original: F32) -> Interval | None:
    """The interval of a ratio of perplexities, from likelihoods (m, L) of the same tokens."""
    found = mean_interval(nll.astype(np.float64) - original)
    if found is None:
        return None
    low, high = (math.exp(min(end, LARGEST)) for end in (found.low, found.high))
    return Interval(low, high, found.tokens, found.independent)


def share_interval(count: int, of: int) -> Interval:
    """The interval of a share (Wilson 1927), which has a width where all agree, too."""
    share, unit = count / of, _Z**2 / of
    middle = (share + unit / 2) / (1 + unit)
    reach = math.sqrt(unit * share * (1 - share) + unit**2 / 4) / (1 + unit)
    return Interval(max(middle - reach, 0.0), min(middle + reach, 1.0), of, TOKENS)


def logit_intervals(
    reference: F32, engine: F32, margin: F32, tie: float
) -> dict[str, Interval | None]:
    """The intervals of `kl_mean` and `top1` as `measure` has them, from logits (n, T, V)."""
    if not np.isfinite(engine).all():
        return {"kl_mean": None, "top1": share_interval(0, margin.size)}
    clear = clear_positions(margin, tie)
    agree = (reference.argmax(axis=-1) == engine.argmax(axis=-1))[clear]
    divergence = np.where(clear, kl_divergence(reference, engine), np.nan)
    return {
        "kl_mean": mean_interval(divergence),
        "top1": share_interval(int(agree.sum()), agree.size),
    }


def student(freedom: int) -> float:
    """The 97.5% point of Student's t: Abramowitz and Stegun 26.7.5, 1% off or less from 3 on."""
    z, n = _Z, freedom
    return (
        z
        + (z**3 + z) / (4 * n)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * n**3)
    )
