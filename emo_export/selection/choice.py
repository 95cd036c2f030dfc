"""Choosing the experts of each layer as its router goes by, on states of what was kept before.

Source: the greedy layerwise pruning of arXiv 2605.06663: a layer's experts are ranked by what the
text gives the already pruned layers before it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from emo_export.interfaces import F32
from emo_export.model.config import EmoConfig, LayerShape
from emo_export.model.names import Kind, Role, Slot, Step
from emo_export.model.product import product_order
from emo_export.reference.forward import Tensor, route
from emo_export.reference.states import States
from emo_export.selection.keep import Selection
from emo_export.selection.method import Method
from emo_export.selection.scores import Scores, Trial, random_scores, router_scores

SPLITS = 16
"""Random halves of the text that are compared to tell how steady a choice is."""


@dataclass(frozen=True)
class LayerChoice:
    """What was chosen in a layer, of which scores.

    `unsteady`: how many of the kept experts another half of the text would replace, on average;
    None for one sequence, which can't tell. `scale`: of what the kept routed experts give.
    """

    kept: tuple[int, ...]
    scores: tuple[float, ...]
    unsteady: float | None
    scale: float = 1.0


class Choice:
    """Ranks experts by a method over the states of a calibration, whose product is being kept."""

    def __init__(self, states: States, source: EmoConfig, selection: Selection) -> None:
        """`states`: of the product, fed along; `source`: the config that counts all experts."""
        self.layers: dict[int, LayerChoice] = {}
        self._states, self._source = states, source
        self._method, self._seed = selection.method, selection.seed
        self._rescale = selection.rescale
        self._logits: Tensor | None = None
        self._held: dict[Role, Tensor] = {}
        self._scores: Scores | None = None
        self._trial: Trial | None = None

    @property
    def chosen(self) -> Mapping[int, Sequence[int]]:
        """What it has chosen so far, by layer."""
        return {layer: one.kept for layer, one in self.layers.items()}

    def save(self) -> Mapping[str, npt.NDArray[Any]]:
        """What was chosen, and of which scores."""
        found = {}
        for layer, one in self.layers.items():
            found[f"{layer}/kept"] = np.array(one.kept, np.int64)
            found[f"{layer}/scores"] = np.array(one.scores, np.float64)
            steady = [] if one.unsteady is None else [one.unsteady]
            found[f"{layer}/unsteady"] = np.array(steady, np.float64)
            found[f"{layer}/scale"] = np.array(one.scale, np.float64)
        return found

    def load(self, saved: Mapping[str, npt.NDArray[Any]]) -> None:
        """Go on from what was saved."""
        for layer in range(self._source.num_hidden_layers):
            if f"{layer}/kept" in saved:
                unsteady = saved[f"{layer}/unsteady"].tolist()
                self.layers[layer] = LayerChoice(
                    tuple(saved[f"{layer}/kept"].tolist()),
                    tuple(saved[f"{layer}/scores"].tolist()),
                    unsteady[0] if unsteady else None,
                    float(saved[f"{layer}/scale"]),
                )

    @property
    def unsteady(self) -> float | None:
        """A layer on average."""
        known = [one.unsteady for one in self.layers.values() if one.unsteady is not None]
        return sum(known) / len(known) if known else None

    @property
    def tries_experts(self) -> bool:
        """Whether experts are read before the choice, too."""
        return self._method.tries_experts

    def wants(self, step: Step) -> bool:
        """Whether an expert's output is asked for."""
        return self._trial is not None and step.expert >= 0 and self._trial.uses(step)

    @torch.no_grad()
    def feed(self, step: Step, slot: Slot, start: int, rows: F32) -> None:
        """The norm before the router, the router, then each expert's matrices in order."""
        weight = torch.from_numpy(np.ascontiguousarray(rows)).to(self._states.hidden.device)
        if slot.role == Role.FFN_NORM:
            self._states.take_norm(Role.FFN_NORM, weight[0])
        elif slot.role == Role.ROUTER:
            self._route(step, weight)
        else:
            self._held[slot.role] = weight
            if slot == step.slots[-1] and self._trial is not None:
                held, self._held = self._held, {}
                self._trial.advance(step, held)

    def _route(self, step: Step, weight: Tensor) -> None:
        shape = self._source.layers[step.layer]
        if self._method == Method.RANDOM:
            self._scores = random_scores(self._states, shape, self._seed, step.layer)
            if not self._rescale:
                return
        whole = replace(self._states, config=self._source)
        whole.advance(replace(step, kind=Kind.ROUTER), {Role.ROUTER: weight})
        self._logits = whole.logits
        if self._method == Method.RANDOM:
            return
        if self._method.tries_experts:
            self._trial = Trial(whole, shape)
        elif whole.logits is not None:
            self._scores = router_scores(self._states, shape, whole.logits)

    def choose(self, layer: int, count: int) -> Sequence[int]:
        """The `count` experts of the highest score, those that every token uses among them."""
        shape = self._source.layers[layer]
        scores = self._scores
        if self._trial is not None:
            scores = self._trial.scores(self._method)
        logits, self._scores, self._trial, self._logits = self._logits, None, None, None
        if scores is None:
            raise ValueError("a choice before its router")
        kept = best(scores.of(), shape, count)
        found = tuple(float(score) for score in scores.of())
        scale = 1.0
        if self._rescale and logits is not None:
            product = self._states.config.layers[layer]
            columns = list(product_order(shape, kept))
            scale = weight_kept(logits, shape) / weight_kept(logits[:, columns], product)
        unsteady = _unsteady(scores, shape, count, self._seed)
        self.layers[layer] = LayerChoice(kept, found, unsteady, scale)
        return kept

    def scale(self, layer: int) -> float:
        """What the routed experts of a layer, once chosen, are multiplied by."""
        return self.layers[layer].scale


def weight_kept(logits: Tensor, shape: LayerShape) -> float:
    """The weight that tokens give their routed experts, from router logits (T, E), on mean."""
    routing = route(logits, shape, False)
    forced = torch.tensor(shape.forced, dtype=torch.int64, device=logits.device)
    routed = ~torch.isin(routing.experts, forced)
    return float((routing.weights * routed).sum(1).double().mean())


def best(scores: Sequence[float] | np.ndarray, shape: LayerShape, count: int) -> tuple[int, ...]:
    """The experts that stay: forced ones, then those of the highest score; ties go to the first."""
    routed = np.array(shape.routed, dtype=np.int64)
    order = np.argsort(-np.asarray(scores)[routed], kind="stable")
    chosen = routed[order[: count - len(shape.forced)]].tolist()
    return tuple(sorted({*shape.forced, *chosen}))


def _unsteady(scores: Scores, shape: LayerShape, count: int, seed: int) -> float | None:
    """Of the kept experts, how many differ between two random halves of the sequences, on mean."""
    n = len(scores.sums)
    if n < 2:
        return None
    rng = np.random.default_rng(seed)
    changed = []
    for _ in range(SPLITS):
        order = rng.permutation(n)
        one, other = (best(scores.of(half), shape, count) for half in np.array_split(order, 2))
        changed.append(len(set(one) - set(other)))
    return float(np.mean(changed))
