"""`--keep auto`: the fewest experts whose loss on held-out text stays within a limit.

Several counts go along in one pass over the weights, each choosing and pruning for itself, so that
the table that leads to the choice is measured, not extrapolated.
"""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING

from emo_export.errors import EmoExportError
from emo_export.exporting.steps import Steps
from emo_export.jobs.domains import Chosen, choose_on_each
from emo_export.model.config import EmoConfig
from emo_export.model.source import Source
from emo_export.parity.losses import ALL, Loss
from emo_export.report.pruning import nothing_fits
from emo_export.selection.auto import Auto, Found, Tried
from emo_export.selection.keep import Keep, Selection

if TYPE_CHECKING:
    from emo_export.reference.probes import Probes
    from emo_export.text.sample import Sample

PARTS = tuple(Fraction(n, 32) for n in (2, 3, 4, 6, 8, 12, 16, 24))
"""Of a layer's experts: each is at most half as many again as the one before."""


def resolved(
    wanted: Selection | Auto,
    source: Source,
    sample: Sample,
    probes: Probes | None,
    steps: Steps,
    device: str,
) -> Selection:
    """What is to be kept; where that is to be found, in a pass of its own that `steps` hears of.

    Raises EmoExportError where no count that was tried is within the limit.
    """
    if isinstance(wanted, Selection):
        return wanted
    if probes is None:
        raise ValueError("nothing to judge by")
    found = find_keep(wanted, source, sample, probes, steps, device)
    steps.on_found(found)
    if found.keep is None:
        raise EmoExportError(nothing_fits(found.tried, found.limit))
    return Selection(Keep(found.keep), wanted.method, wanted.seed, wanted.rescale)


def counts_to_try(config: EmoConfig) -> list[int]:
    """Of each layer, fewest first; at least one that tokens choose, and not all."""
    least = max(len(layer.forced) for layer in config.layers)
    counts = sorted({Keep(part).of(config.num_experts) for part in PARTS})
    return [count for count in counts if least < count < config.num_experts]


def find_keep(
    auto: Auto, source: Source, sample: Sample, probes: Probes, steps: Steps, device: str = "cpu"
) -> Found:
    """Try counts on calibration text, judged on its own kind where held-out text has just that.

    Raises EmoExportError for a model of which no experts can be left out.
    """
    from emo_export.reference.probes import domain_names

    counts = counts_to_try(source.config)
    if not counts:
        raise EmoExportError("--keep auto: this model has no experts to choose from")
    selections = [Selection(Keep(count), auto.method, auto.seed, auto.rescale) for count in counts]
    rows = choose_on_each(source, {ALL: sample}, selections, probes, steps, device)
    kinds = domain_names(sample.texts.files)
    judged_on = kinds[0] if len(kinds) == 1 and kinds[0] in probes.domains else ALL
    tried = tuple(Tried(row.keep, _loss(row, judged_on)) for row in rows)
    return Found(tried, judged_on, auto.loss)


def _loss(row: Chosen, domain: str) -> Loss:
    return next(one for one in row.loss if one.domain == domain)
