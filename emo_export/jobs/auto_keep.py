"""`--keep auto`: the fewest experts whose loss on held-out text stays within a limit.

Several counts go along in one pass over the weights, each choosing and pruning for itself, so that
the table that leads to the choice is measured, not extrapolated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING

from emo_export.base.install import CONVERT, need
from emo_export.errors import EmoExportError
from emo_export.exporting.steps import Steps
from emo_export.jobs.domains import Chosen, choose_on_each
from emo_export.jobs.export import export_probes
from emo_export.jobs.options import Auto, ExportOptions
from emo_export.jobs.torch_device import prepare_torch
from emo_export.measuring import read_sample
from emo_export.model.checkpoint import Checkpoint
from emo_export.model.config import EmoConfig
from emo_export.model.product import Product
from emo_export.parity.losses import ALL, Loss
from emo_export.selection.keep import Keep, Selection

if TYPE_CHECKING:
    from emo_export.reference.probes import Probes
    from emo_export.text.sample import Sample

PARTS = tuple(Fraction(n, 32) for n in (2, 3, 4, 6, 8, 12, 16, 24))
"""Of a layer's experts: each is at most half as many again as the one before."""


@dataclass(frozen=True)
class Tried:
    """A count of experts of each layer, and what it costs."""

    keep: int
    loss: Loss


@dataclass(frozen=True)
class Found:
    """The counts that were tried, fewest first, and the first within the limit (None: not one).

    `judged_on` is the kind of held-out text that decided, `limit` the loss that is allowed, as 0.02
    for a perplexity 1.02 times that of all experts.
    """

    tried: tuple[Tried, ...]
    judged_on: str
    limit: float

    @property
    def keep(self) -> int | None:
        """The fewest experts within the limit."""
        return next((t.keep for t in self.tried if t.loss.ratio <= 1 + self.limit), None)


def counts_to_try(config: EmoConfig) -> list[int]:
    """Of each layer, fewest first; at least one that tokens choose, and not all."""
    least = max(len(layer.forced) for layer in config.layers)
    counts = sorted({Keep(part).of(config.num_experts) for part in PARTS})
    return [count for count in counts if least < count < config.num_experts]


def find_keep(
    checkpoint: Checkpoint,
    sample: Sample,
    kinds: Sequence[str],
    auto: Auto,
    probes: Probes,
    steps: Steps,
    device: str = "cpu",
) -> Found:
    """Try counts on calibration text, judged on its own kind where held-out text has just that.

    `kinds` names the kinds of the calibration text. Raises EmoExportError for a model of which no
    experts can be left out.
    """
    counts = counts_to_try(checkpoint.config)
    if not counts:
        raise EmoExportError("--keep auto: this model has no experts to choose from")
    selections = [Selection(Keep(count), auto.method, auto.seed) for count in counts]
    rows = choose_on_each(checkpoint, {ALL: sample}, selections, probes, steps, device)
    judged_on = kinds[0] if len(kinds) == 1 and kinds[0] in probes.domains else ALL
    return Found(
        tuple(Tried(row.keep, _loss(row, judged_on)) for row in rows), judged_on, auto.loss
    )


def _loss(row: Chosen, domain: str) -> Loss:
    return next(one for one in row.loss if one.domain == domain)


def resolve_auto(
    checkpoint: Checkpoint, options: ExportOptions, steps: Steps
) -> tuple[ExportOptions, Found]:
    """Find how many experts to keep, in a pass of its own: options that say so, and the table.

    Raises EmoExportError where no count that was tried is within the limit.
    """
    from emo_export.reference.probes import domain_names

    need(CONVERT, "convert", "export")
    options.check()
    auto = options.auto
    if auto is None:
        raise ValueError("the options say how many experts are kept")
    prepare_torch(options.device, checkpoint.nbytes)
    product = Product.whole(checkpoint)
    sample = read_sample(options.text(options.calibration), product)
    probes = export_probes(checkpoint, options, steps)
    if probes is None:
        raise ValueError("nothing to judge by")
    kinds = domain_names(sample.texts.files)
    found = find_keep(checkpoint, sample, kinds, auto, probes, steps, options.device)
    keep = None if found.keep is None else Keep(found.keep)
    selection = None if keep is None else Selection(keep, auto.method, auto.seed)
    return replace(options, auto=None, selection=selection), found
