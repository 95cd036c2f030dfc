"""What leaving experts out costs: likelihoods of the full and of the pruned float model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from emo_export.interfaces import F32
from emo_export.parity.golden import domain_order, perplexity


@dataclass(frozen=True)
class PruningLoss:
    """Of one kind of held-out text (`domain`, or all of it).

    `ratio` is `pruned` over `full` perplexity, `stderr` the standard error of its logarithm, paired
    by token and counted by sequence (NaN for a single sequence).
    """

    domain: str
    tokens: int
    full: float
    pruned: float
    ratio: float
    stderr: float


ALL = "all"


def pruning_loss(full: F32, pruned: F32, domains: Sequence[str]) -> tuple[PruningLoss, ...]:
    """By domain and then of everything, from negative log likelihoods (m, L), NaN for no token."""
    found = []
    for name in [*domain_order(domains), ALL]:
        rows = np.array([name in (domain, ALL) for domain in domains])
        one, other = full[rows], pruned[rows]
        before, after = perplexity(one), perplexity(other)
        tokens = int(np.isfinite(one).sum())
        found.append(PruningLoss(name, tokens, before, after, after / before, _stderr(other - one)))
    return tuple(found)


def _stderr(differences: F32) -> float:
    """Of the mean over tokens of (m, L), whose rows, but not the tokens in one, are independent."""
    wide = differences.astype(np.float64)
    counts = np.isfinite(wide).sum(axis=1)
    sums = np.nansum(wide, axis=1)
    rows, total = len(wide), counts.sum()
    if rows < 2:
        return math.nan
    rest = sums - counts * sums.sum() / total
    return float(np.sqrt(rows / (rows - 1) * (rest**2).sum()) / total)
