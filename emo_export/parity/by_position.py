"""Where in a sequence, and in which kind of text, an engine departs from the reference."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from emo_export.interfaces import F32
from emo_export.parity.golden import F64, Golden, Variant, domain_order, kl_divergence, perplexity


@dataclass(frozen=True)
class ByPosition:
    """Figures of each position (T,) over all judged sequences, near ties included.

    Mean KL in nats, mean and largest absolute logit error, share of equal top tokens; 6 digits. NaN
    where the engine is not finite.
    """

    kl_mean: tuple[float, ...]
    mean_abs: tuple[float, ...]
    max_abs: tuple[float, ...]
    top1: tuple[float, ...]


@dataclass(frozen=True)
class DomainFigures:
    """One kind of held-out text: tokens scored, the engine's perplexity, times the original's."""

    domain: str
    tokens: int
    perplexity: float
    perplexity_ratio: float


def by_position(reference: F32, engine: F32) -> ByPosition:
    """Compare logits (n, T, V) position by position."""
    error = np.abs(reference - engine)
    with np.errstate(invalid="ignore"):
        divergence = kl_divergence(reference, engine)
    agree = (reference.argmax(axis=-1) == engine.argmax(axis=-1)) & np.isfinite(engine).all(axis=-1)
    return ByPosition(
        kl_mean=_digits(divergence.mean(axis=0)),
        mean_abs=_digits(error.mean(axis=(0, 2), dtype=np.float64)),
        max_abs=_digits(error.max(axis=(0, 2)).astype(np.float64)),
        top1=_digits(agree.mean(axis=0)),
    )


def by_domain(golden: Golden, original: Variant, nll: F32) -> tuple[DomainFigures, ...]:
    """Perplexity of each domain from likelihoods (m, L); empty when golden has no domains."""
    figures = []
    for name in domain_order(golden.domains):
        rows = np.array([domain == name for domain in golden.domains])
        found = perplexity(nll[rows])
        ratio = found / perplexity(original.heldout_nll[rows])
        tokens = int((golden.heldout_ids[rows, 1:] >= 0).sum())
        figures.append(DomainFigures(name, tokens, found, ratio))
    return tuple(figures)


def _digits(values: F64) -> tuple[float, ...]:
    """Six significant digits say all that is measured, and keep parity.json short."""
    finite = np.where(np.isfinite(values), values, np.nan)
    return tuple(float(f"{value:.6g}") for value in finite)
