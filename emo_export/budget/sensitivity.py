"""What types cost: the KL of each variant's logits, all variants in one pass over the weights.

A variant has some places in other formats and float weights elsewhere. It has states of its own
from the first place on that differs; before it, the float model's are the same. A site is thus
measured alone, on text that the statistics of its quantiser did not see. Letters: T tokens, D
hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from emo_export.budget.sites import Place, place_of
from emo_export.interfaces import F32, Format, Ids, InputStatistics, Quantiser
from emo_export.model.config import EmoConfig
from emo_export.model.names import Kind, Role, Slot, Step
from emo_export.model.quantiser import Weighted
from emo_export.model.recipes import Part
from emo_export.reference.calibrate import Calibration
from emo_export.reference.forward import Tensor
from emo_export.reference.passes import Pass
from emo_export.reference.states import States

TOKENS = 2048
"""Tokens of calibration text on which variants are judged."""
STATES_BYTES = 1 << 30
"""What the states of all variants of one pass may take; more variants take more passes."""
HELD = 3
"""Arrays (T, D) that a variant holds at most: hidden, normed and inner."""
ROWS = 128
"""Tokens whose logits are compared at a time."""

Formats = Mapping[Place, Format]


def variants_at_once(config: EmoConfig, tokens: int) -> int:
    """How many variants one pass carries."""
    return max(1, STATES_BYTES // (4 * tokens * config.hidden_size * HELD))


class Divergence:
    """Mean KL of logits from those of a reference, which come in pieces of the vocabulary.

    Holds four numbers a token and not one logit.
    """

    def __init__(self, tokens: int, device: torch.device) -> None:
        low = torch.full((tokens,), -torch.inf, dtype=torch.float64, device=device)
        zero = torch.zeros(tokens, dtype=torch.float64, device=device)
        self._peak, self._sum = low.clone(), zero.clone()  # of the reference
        self._own_peak, self._own_sum = low.clone(), zero.clone()
        self._gap = zero.clone()  # sum of exp(reference - peak) * (reference - own)

    def add(self, rows: slice, reference: Tensor, own: Tensor) -> None:
        """Logits (t, n) of some tokens for a piece of the vocabulary."""
        reference, own = reference.double(), own.double()
        peak = torch.maximum(self._peak[rows], reference.amax(1))
        before, weight = (self._peak[rows] - peak).exp(), (reference - peak[:, None]).exp()
        self._sum[rows] = self._sum[rows] * before + weight.sum(1)
        self._gap[rows] = self._gap[rows] * before + (weight * (reference - own)).sum(1)
        self._peak[rows] = peak
        peak = torch.maximum(self._own_peak[rows], own.amax(1))
        before = (self._own_peak[rows] - peak).exp()
        self._own_sum[rows] = self._own_sum[rows] * before + (own - peak[:, None]).exp().sum(1)
        self._own_peak[rows] = peak

    @property
    def mean(self) -> float:
        """In nats per token; rounding may leave it a little below zero where logits are equal."""
        lse = self._peak + self._sum.log()
        own_lse = self._own_peak + self._own_sum.log()
        return float((self._gap / self._sum - lse + own_lse).mean())


@dataclass
class _Variant:
    formats: Formats
    divergence: Divergence
    going: Pass | None = None


class Sensitivity:
    """A listener on the float weights of a whole model that carries the float model and variants.

    `sequences` are judged, of token ids (T,) each; `calibration` goes over other text and tells
    quantisers of their inputs (None: they are told nothing). `kls` has the mean KL of each variant
    in the order given, once the pass is over.
    """

    def __init__(
        self,
        config: EmoConfig,
        sequences: Sequence[Ids],
        variants: Iterable[Formats],
        calibration: Calibration | None = None,
        quantiser: Callable[[Format], Quantiser] = Weighted,
        device: str = "cpu",
    ) -> None:
        self._config, self._quantiser = config, quantiser
        self._calibration = calibration
        self._anew = partial(States.of, config, sequences, device=device)
        self._float = Pass(self._anew())
        states = self._float.states
        count, where = len(states.ids), states.hidden.device
        self._variants = [_Variant(each, Divergence(count, where)) for each in variants]

    @property
    def kls(self) -> list[float]:
        """Mean KL of each variant from the float model, in nats."""
        return [variant.divergence.mean for variant in self._variants]

    def wants(self, step: Step, slot: Slot) -> bool:
        """An expert that no variant needs is not read."""
        if slot.role == Role.HEAD:
            return True
        passes: list[Pass | Calibration] = [self._float]
        passes += [v.going for v in self._variants if v.going is not None]
        if self._calibration is not None:
            passes.append(self._calibration)
        return any(each.wants(step, slot) for each in passes)

    def save(self) -> Mapping[str, npt.NDArray[Any]]:
        """Nothing: a measurement that is interrupted begins anew."""
        return {}

    def load(self, saved: Mapping[str, npt.NDArray[Any]]) -> None:
        """Nothing was saved."""

    def feed(self, step: Step, slot: Slot, start: int, rows: F32) -> None:
        """Take rows of a weight, quantise them for the variants that want it, and go on."""
        self._begin(step, slot)
        place = place_of(slot, self._config)
        told: InputStatistics | None = None
        kinds = {
            id(v.formats[place]): v.formats[place] for v in self._variants if place in v.formats
        }
        if kinds and self._calibration is not None:
            needs = self._quantiser(next(iter(kinds.values()))).needs
            told = self._calibration.statistics(step, slot, needs)
        made: dict[int, F32] = {}
        for key, kind in kinds.items():
            made[key] = kind.dequantize(self._quantiser(kind).quantize(rows, told))
        if slot.role == Role.HEAD:
            self._judge(place, rows, made)
            return
        for variant in self._variants:
            if variant.going is not None and variant.going.wants(step, slot):
                own = rows if place not in variant.formats else made[id(variant.formats[place])]
                variant.going.feed(step, slot, start, own)
        listeners: list[Pass | Calibration] = [self._float]
        if self._calibration is not None:
            listeners.append(self._calibration)
        for each in listeners:
            if each.wants(step, slot):
                each.feed(step, slot, start, rows)

    def _begin(self, step: Step, slot: Slot) -> None:
        """Let variants go their own way from the norm, or the embedding, before their places."""
        for variant in self._variants:
            if variant.going is None and any(_starts(p, step, slot) for p in variant.formats):
                embed = slot.role == Role.EMBED
                own = self._anew() if embed else self._float.states.copy()
                variant.going = Pass(own)

    @torch.no_grad()
    def _judge(self, place: Place, rows: F32, made: Mapping[int, F32]) -> None:
        """Compare logits for some rows of the head."""
        base = self._float.states.hidden

        def weight(array: F32) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(array)).to(base.device)

        heads = {key: weight(array) for key, array in made.items()}
        original = weight(rows)
        for at in range(0, len(base), ROWS):
            span = slice(at, min(at + ROWS, len(base)))
            reference = F.linear(base[span], original)
            for variant in self._variants:
                hidden = base if variant.going is None else variant.going.states.hidden
                changed = place in variant.formats
                head = heads[id(variant.formats[place])] if changed else original
                variant.divergence.add(span, reference, F.linear(hidden[span], head))


_AFTER_FFN_NORM = (Part.ROUTER, Part.EXPERT, Part.EXPERT_DOWN, Part.SHARED_EXPERT, Part.DENSE)


def _starts(place: Place, step: Step, slot: Slot) -> bool:
    """Whether a slot is the first whose states a change of a place must not share."""
    part, layer = place
    if part == Part.EMBED:
        return slot.role == Role.EMBED
    if part == Part.HEAD:
        return False  # the hidden states stay the float model's
    wanted = Role.FFN_NORM if part in _AFTER_FFN_NORM else Role.ATTN_NORM
    return layer == step.layer and slot.role == wanted and step.kind != Kind.HEAD
