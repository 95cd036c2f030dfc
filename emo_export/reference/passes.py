"""Whole forward passes over weights that arrive one matrix at a time: logits, and greedy text.

Weights come from anything that gives rows of a slot: a checkpoint, a product of it, or the file of
an exported model, read back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate
from operator import and_, eq
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from emo_export.interfaces import F32, Ids
from emo_export.model.config import EmoConfig
from emo_export.model.names import VECTORS, Kind, Role, Slot, Step, blocks, row_spans
from emo_export.reference.forward import KeyValues, Tensor
from emo_export.reference.states import States

Rows = Callable[[Slot, int, int], F32]
"""(slot, first row, end row) -> rows (end - first, C) float32. A tied head is asked for, too."""
OnLogits = Callable[[int, int, F32], None]
"""(sequence, first row of the vocabulary, logits (T, rows)) of each piece of the head."""
OnRouter = Callable[[int, F32], None]
"""(layer, router logits (tokens, E)) for all tokens of all sequences in order."""

FEW_TOKENS = 64
"""Up to so many tokens the embedding is read row by row."""

AHEAD = 8
"""Tokens that are drafted at first; more after a draft that held, none after two that are wrong."""


class Counting(Protocol):
    """What else a pass fills on its way through the layers."""

    def save(self) -> Mapping[str, npt.NDArray[Any]]:
        """Its arrays between two layers."""

    def load(self, saved: Mapping[str, npt.NDArray[Any]]) -> None:
        """Go on from there."""


class Pass:
    """One variant's states, fed with weights in the order of `names.blocks`, rows in order.

    It takes a step as soon as the last weight of it is there, and lets go of the weights then.
    Without `on_logits` it ends before the head. `counting` is saved and loaded along.
    """

    def __init__(
        self,
        states: States,
        on_logits: OnLogits | None = None,
        on_router: OnRouter | None = None,
        counting: Counting | None = None,
    ) -> None:
        self.states, self._counting = states, counting
        self._on_logits, self._on_router = on_logits, on_router
        self._held: dict[Role, Tensor] = {}

    def wants(self, step: Step, slot: Slot) -> bool:
        """Whether a weight of a step is needed."""
        if slot.role == Role.HEAD:
            return self._on_logits is not None
        return self.states.uses(step)

    @torch.no_grad()
    def feed(self, step: Step, slot: Slot, start: int, rows: F32) -> None:
        """Take rows (n, C) of a weight; only embedding and head come in several pieces."""
        weight = torch.from_numpy(np.ascontiguousarray(rows)).to(self.states.hidden.device)
        if slot.role == Role.EMBED:
            self.states.embed(start, weight)
        elif slot.role in (Role.ATTN_NORM, Role.FFN_NORM, Role.FINAL_NORM):
            self.states.take_norm(slot.role, weight[0])
        elif slot.role == Role.HEAD:
            if self._on_logits is not None:
                for sequence, scores in enumerate(self.states.head(weight)):
                    self._on_logits(sequence, start, scores.cpu().numpy())
        else:
            self._held[slot.role] = weight[0] if slot.role in VECTORS else weight
            if slot == step.slots[-1]:
                held, self._held = self._held, {}
                self.states.advance(step, held)
                router = self.states.logits
                if step.kind == Kind.ROUTER and router is not None and self._on_router is not None:
                    self._on_router(step.layer, router.cpu().numpy())

    def save(self) -> Mapping[str, npt.NDArray[Any]]:
        """Between two layers, the hidden states say it all."""
        counted = {} if self._counting is None else self._counting.save()
        return {"hidden": self.states.hidden.cpu().numpy(), **counted}

    def load(self, saved: Mapping[str, npt.NDArray[Any]]) -> None:
        """Go on from what was saved."""
        self.states.hidden.copy_(torch.from_numpy(saved["hidden"]))
        if self._counting is not None:
            self._counting.load(saved)

    def run(self, rows: Rows) -> None:
        """The whole model, reading no weight that no token needs."""
        for block in blocks(self.states.config):
            for step in block.steps:
                for slot in step.slots:
                    if self.wants(step, slot):
                        for start, stop in self._spans(slot):
                            self.feed(step, slot, start, rows(slot, start, stop))

    def _spans(self, slot: Slot) -> Iterator[tuple[int, int]]:
        ids = self.states.ids
        if slot.role == Role.EMBED and len(ids) <= FEW_TOKENS:
            return ((token, token + 1) for token in sorted(set(ids.tolist())))
        return row_spans(slot, self.states.config)


def logits(
    config: EmoConfig,
    rows: Rows,
    sequences: Sequence[Ids],
    *,
    cache: KeyValues | None = None,
    device: str = "cpu",
) -> list[F32]:
    """Token ids (T,) each -> logits (T, V) each."""
    out = [np.empty((len(ids), config.vocab_size), np.float32) for ids in sequences]

    def keep(sequence: int, start: int, piece: F32) -> None:
        out[sequence][:, start : start + piece.shape[1]] = piece

    Pass(States.of(config, sequences, cache=cache, device=device), keep).run(rows)
    return out


def greedy(
    config: EmoConfig,
    rows: Rows,
    prompt: Ids,
    steps: int,
    device: str = "cpu",
    draft: Rows | None = None,
) -> Ids:
    """The `steps` most likely tokens after a prompt (T,).

    Stops early at the end of the context. A pass reads only the experts that its tokens use.
    Without `draft` there is a pass for each token. `draft` are weights that are cheaper to read:
    what they would write is checked in one pass over all of it, and written anew from the first
    token at which the two part (speculative decoding, arXiv 2211.17192), so that few passes go over
    `rows` and the text is theirs.
    """
    sequence, cache, drafted = prompt.tolist(), KeyValues(), KeyValues()
    end, ahead = min(len(prompt) + steps, config.context_length()), AHEAD
    while len(sequence) < end:
        guess: list[int] = []
        if draft is not None and ahead:
            new, count = sequence[drafted.length :], min(ahead, end - 1 - len(sequence))
            guess = _written(config, draft, new, count, drafted, device)
        new = np.array(sequence[cache.length :] + guess, dtype=np.int64)
        scores = logits(config, rows, [new], cache=cache, device=device)[0]
        likely = scores[len(new) - len(guess) - 1 :].argmax(-1).tolist()
        agreed = sum(accumulate(map(eq, guess, likely), and_))
        sequence += likely[: agreed + 1]
        ahead = 2 * ahead if agreed == len(guess) else max(agreed, ahead // 4)
        for one in (cache, drafted):
            one.cut(len(sequence) - 1)
    return np.array(sequence[len(prompt) :], dtype=np.int64)


def _written(
    config: EmoConfig, rows: Rows, new: list[int], count: int, cache: KeyValues, device: str
) -> list[int]:
    """The `count` most likely tokens after what is cached and `new`; a pass for each."""
    found: list[int] = []
    for _ in range(count):
        ids = np.array(found[-1:] or new, dtype=np.int64)
        scores = logits(config, rows, [ids], cache=cache, device=device)[0]
        found.append(int(scores[-1].argmax()))
    return found
