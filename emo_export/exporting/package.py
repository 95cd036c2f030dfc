"""What one exported folder is to hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from emo_export.exporting.target import Target
from emo_export.interfaces import Format
from emo_export.line import Calibrating, Choosing, Line, Listener, Measured, Output, TrunkMeasured
from emo_export.model.product import Product

ALONE = ""
"""The name of a package that no domain is named for: its folder is the whole export."""


@dataclass(frozen=True)
class Measure:
    """What is measured on the way: `measured` tells quantisers of inputs, `save` keeps it.

    `own` begins a calibration of what a target's own weights compute, for GPTQ to round by.
    `trunk` tells them, instead, of the inputs of matrices that several packages share.

    `listeners` go along over the float weights of the product; `choice` tells which experts it has.
    """

    measured: Measured | None = None
    own: Callable[[], Calibrating] | None = None
    trunk: TrunkMeasured | None = None
    listeners: Sequence[Listener] = ()
    choice: Choosing | None = None
    save: Callable[[Path], None] = lambda folder: None
    device: str = "cpu"


NOTHING = Measure()


@dataclass(frozen=True)
class Package:
    """Targets of a product, and what is measured for them."""

    product: Product
    make_targets: Callable[[Path], Sequence[Target]]
    measure: Measure = NOTHING
    recipe: Mapping[str, str] = field(default_factory=dict)
    """What it depends on beside the source and the options, by what a user calls it."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What the manifest's recipe says of it beside the options."""

    def line(self, targets: Sequence[Target]) -> Line:
        """The product on its way to the targets that were made of it."""
        measure = self.measure
        outputs = [self._output(target) for target in targets]
        return Line(self.product, outputs, measure.listeners, measure.choice)

    def _output(self, target: Target) -> Output:
        measure = self.measure
        if measure.own is None or target.is_lossless:
            return Output(target.writer, measure.measured, trunk=measure.trunk)
        from emo_export.rounding.quantiser import Factors, Gptq

        factors = Factors(measure.device)

        def quantiser(format: Format) -> Gptq:
            return Gptq(format, target.grid_of(format), factors)

        return Output(target.writer, measure.measured, measure.own(), quantiser, measure.trunk)
