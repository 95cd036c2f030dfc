"""What is lost on the way from the full float model to an artifact: by pruning, bits, and both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from emo_export.interfaces import F32
from emo_export.parity.estimates import spread
from emo_export.parity.golden import FULL, ORIGINAL, Golden, domain_order, perplexity

ALL = "all"


@dataclass(frozen=True)
class Loss:
    """Perplexity of one kind of held-out text (`domain`, or `all` of it) on both sides of a step.

    `ratio` is `after` over `before`, `stderr` the standard error of its logarithm, paired by token
    (`estimates`); None for a single token.
    """

    domain: str
    tokens: int
    before: float
    after: float
    ratio: float
    stderr: float | None


@dataclass(frozen=True)
class Losses:
    """By domain, then of everything.

    `bits`: float original to artifact. Where experts were left out on the way here, the original is
    the pruned float model; then `pruning` is what leads to it from the full one, `both` the whole
    way. Otherwise those two are empty.
    """

    bits: tuple[Loss, ...]
    pruning: tuple[Loss, ...] = ()
    both: tuple[Loss, ...] = ()


def losses(golden: Golden, nll: F32) -> Losses:
    """Of an artifact with negative log likelihoods (m, L) of the held-out tokens."""
    original, domains = golden.variants[ORIGINAL].heldout_nll, golden.domains
    bits = by_domain(original, nll, domains)
    if FULL not in golden.variants:
        return Losses(bits)
    full = golden.variants[FULL].heldout_nll
    return Losses(bits, by_domain(full, original, domains), by_domain(full, nll, domains))


def by_domain(before: F32, after: F32, domains: Sequence[str]) -> tuple[Loss, ...]:
    """Of each domain and then of everything, from likelihoods (m, L), NaN where there is no token.

    `domains` names the kind of text of each row; none: they are not known.
    """
    found = []
    for name in [*domain_order(domains), ALL]:
        rows = np.array([name in (domain, ALL) for domain in domains or [ALL] * len(before)])
        one, other = perplexity(before[rows]), perplexity(after[rows])
        error = spread(after[rows].astype(np.float64) - before[rows])
        tokens = int((~np.isnan(before[rows])).sum())
        stderr = None if error is None else error.stderr
        found.append(Loss(name, tokens, one, other, other / one, stderr))
    return tuple(found)
