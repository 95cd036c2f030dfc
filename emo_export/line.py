"""What goes along a source: products, with their writers, listeners and choices of experts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy.typing as npt

from emo_export.interfaces import F32, Format, InputStatistics, Quantiser, Statistics, Writer
from emo_export.model.names import Slot, Step
from emo_export.model.product import Product
from emo_export.model.quantiser import Weighted


class Measured(Protocol):
    """Where statistics of inputs come from: an importance matrix, or a calibration."""

    def statistics(self, step: Step, slot: Slot, needs: Statistics) -> InputStatistics | None:
        """Of a matrix's inputs, asked before it is fed; None where nothing was measured."""


class Listener(Protocol):
    """What weights of a product are fed to: a pass, a calibration."""

    def wants(self, step: Step, slot: Slot) -> bool:
        """Whether a weight is needed."""

    def feed(self, step: Step, slot: Slot, start: int, rows: F32) -> None:
        """Take rows of a weight, in the order of `names.blocks`."""

    def save(self) -> Mapping[str, npt.NDArray[Any]]:
        """What the layers to come depend on, between two layers."""

    def load(self, saved: Mapping[str, npt.NDArray[Any]]) -> None:
        """Go on from there."""


class TrunkMeasured(Measured, Protocol):
    """Tells of the inputs of matrices that several products have in common, the same to each."""

    def holds(self, slot: Slot) -> bool:
        """Whether a matrix is one of them."""


class Calibrating(Measured, Listener, Protocol):
    """A calibration: it goes along over weights, and tells of the inputs of those to come."""


class Choosing(Protocol):
    """Chooses which experts of a layer a product keeps, from what its earlier layers compute."""

    @property
    def tries_experts(self) -> bool:
        """It wants every expert of a layer before it chooses, so that kept ones are read twice."""

    def wants(self, step: Step) -> bool:
        """Whether it has a use for an expert that it tries."""

    def feed(self, step: Step, slot: Slot, start: int, rows: F32) -> None:
        """The source's router, with the norm before it, then the experts that it tries."""

    def choose(self, layer: int, count: int) -> Sequence[int]:
        """The source's numbers of the experts to keep."""

    def scale(self, layer: int) -> float:
        """What the routed experts that it chose give is multiplied by."""

    @property
    def chosen(self) -> Mapping[int, Sequence[int]]:
        """What it has chosen so far, by layer."""

    def save(self) -> Mapping[str, npt.NDArray[Any]]:
        """What it has chosen, and of which scores."""

    def load(self, saved: Mapping[str, npt.NDArray[Any]]) -> None:
        """Go on from there."""


@dataclass(frozen=True)
class Output:
    """A writer, the quantiser that it wants for a format, and what quantisers are told.

    `own` is a calibration of the quantised model: it is fed what this output makes of the weights.
    It answers for the inputs of a matrix, `measured` where there is none; `trunk` for those that it
    holds.
    """

    writer: Writer
    measured: Measured | None = None
    own: Calibrating | None = None
    quantiser: Callable[[Format], Quantiser] = Weighted
    trunk: TrunkMeasured | None = None

    def told_by(self, slot: Slot) -> Measured | None:
        """What answers for the inputs of a matrix."""
        if self.trunk is not None and self.trunk.holds(slot):
            return self.trunk
        return self.own or self.measured


@dataclass(frozen=True)
class Line:
    """One product of a source: what is written of it, and what listens to its float weights.

    With `choice` the product awaits its experts, and learns them as each layer's router goes by.
    """

    product: Product
    outputs: Sequence[Output] = ()
    listeners: Sequence[Listener] = ()
    choice: Choosing | None = None

    def wants(self, step: Step, slot: Slot) -> bool:
        """Whether it has a use for a weight of the source."""
        place = self.product.place_of(slot)
        if place is None:
            return False
        step = step_at(step, place)
        return bool(self.outputs) or any(each.wants(step, place) for each in self.listeners)


def step_at(step: Step, place: Slot) -> Step:
    """A step as the product numbers its expert."""
    if step.expert == place.expert:
        return step
    slots = tuple(replace(slot, expert=place.expert) for slot in step.slots)
    return replace(step, expert=place.expert, slots=slots)
