"""What became of one variant of a sweep: facts, which a report lists beside those of the others."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from emo_export.base.strict_dataclass import read_dataclass
from emo_export.errors import EmoExportError
from emo_export.parity.golden import FULL, ORIGINAL, Golden, kl_divergence
from emo_export.parity.losses import Loss
from emo_export.parity.result import PREFILL, SHIPPED, Result, without_nan


@dataclass(frozen=True)
class Label:
    """Which variant: `keep` as 8, 25% or all; `method` is empty where all experts stay."""

    name: str
    domain: str
    keep: str
    method: str
    target: str


@dataclass(frozen=True)
class Outcome:
    """What is in a variant's folder, or why there is nothing (`error`).

    `judged`: by domain of held-out text, the way from the full float model to the artifact as the
    engine computes it. `kl_full`: mean KL from the full float model, of the reference on the
    weights that the artifact holds; `kl_bits`: of the engine, from the float model with the same
    experts. `bytes` are the target's, without what lies beside it.
    """

    label: Label
    seconds: float
    exit_code: int
    verdict: str = ""
    error: str = ""
    bytes: int | None = None
    judged: tuple[Loss, ...] = ()
    kl_full: float | None = None
    kl_bits: float | None = None

    @property
    def own(self) -> Loss | None:
        """On text of the domain that it was made for."""
        return next((one for one in self.judged if one.domain == self.label.domain), None)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        found: dict[str, Any] = without_nan(asdict(self))
        return found

    @classmethod
    def from_dict(cls, raw: object, where: str) -> Outcome:
        """What `as_dict` made. Raises EmoExportError for anything else."""
        return read_dataclass(cls, raw, where)


def outcome_of(
    label: Label,
    result: Result,
    golden: Golden,
    nbytes: int,
    seconds: float,
    domains: Mapping[str, str],
) -> Outcome:
    """From the result of the one target of a folder.

    `domains`: name of a held-out row's text in `golden` -> domain of the sweep.
    """
    full = golden.variants.get(FULL, golden.variants[ORIGINAL])
    stored = golden.variant(label.target)
    losses = result.losses
    both = () if losses is None else losses.both or losses.bits
    bits = (ORIGINAL, SHIPPED, PREFILL)
    row = next((r for r in result.rows if (r.against, r.arithmetic, r.mode) == bits), None)
    return Outcome(
        label,
        seconds,
        result.exit_code,
        result.verdict,
        bytes=nbytes,
        judged=tuple(
            pooled(name, [one for one in both if domains.get(one.domain) == name])
            for name in dict.fromkeys(domains.values())
        ),
        kl_full=float(kl_divergence(full.logits, stored.logits).mean()),
        kl_bits=None if row is None else row.measured.kl_mean,
    )


def pooled(name: str, parts: Sequence[Loss]) -> Loss:
    """One figure of several kinds of text, in which each token counts the same.

    Raises EmoExportError where there is none: the text was too short.
    """
    tokens = sum(one.tokens for one in parts)
    if not tokens:
        raise EmoExportError(f"the held-out text of {name} is too short to judge anything on")
    shares = [one.tokens / tokens for one in parts]
    before = math.exp(sum(s * math.log(p.before) for s, p in zip(shares, parts, strict=True)))
    after = math.exp(sum(s * math.log(p.after) for s, p in zip(shares, parts, strict=True)))
    errors = [one.stderr for one in parts if one.stderr is not None]
    stderr = None
    if len(errors) == len(parts):
        stderr = math.hypot(*(s * error for s, error in zip(shares, errors, strict=True)))
    return Loss(name, tokens, before, after, after / before, stderr)
