"""A budget instead of a recipe: measure what types cost each part and layer, and spend it best."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from emo_export.base.ram_size import shown
from emo_export.budget.allocate import Option, allocate
from emo_export.budget.budget import Budget, Chosen, Found, Limit, recipe_of
from emo_export.budget.sites import Candidates, Place, bytes_of, sites, slots_of
from emo_export.errors import EmoExportError
from emo_export.exporting.steps import Steps
from emo_export.families import FAMILIES
from emo_export.families.options import TargetOptions
from emo_export.interfaces import Format, Ids
from emo_export.line import Line
from emo_export.model.config import EmoConfig
from emo_export.model.importance import ImportanceMatrix
from emo_export.model.names import shape_of, slots
from emo_export.model.product import Product
from emo_export.model.recipes import Recipe
from emo_export.model.source import Source
from emo_export.pipeline import stream
from emo_export.planning.outline import Planned, planned_with
from emo_export.spec import Spec

if TYPE_CHECKING:
    from emo_export.text.sample import Sample

TRIES = 4
"""Allocations until the files that are laid out keep the budget.

What a type takes of memory is not just its bytes, and a tensor may need a better type than wanted.
"""


def find_types(
    source: Source,
    specs: Sequence[Spec],
    budget: Budget,
    sample: Sample,
    targets: TargetOptions,
    steps: Steps,
    device: str = "cpu",
) -> list[Found]:
    """For each target the types with the least KL on calibration text within the budget.

    KLs of sites are taken to add up; the choice as a whole is measured in a pass of its own.
    Raises EmoExportError where even the smallest types exceed the budget.
    """
    judged, told = judged_and_told(sample.sequences)
    measure = Measure(source, judged, told, sample.source, steps, device)
    found = []
    importance = ImportanceMatrix(sample.source, sample.tokens)
    for spec in specs:
        candidates = FAMILIES[spec.family].candidates(spec)
        if budget.limit is Limit.FIT:  # most such devices are Arm, where ONNX's 2 bits are slow
            candidates = replace(candidates, routed={})
        table = table_of(source.config, candidates)
        layout = Layout(Product.whole(source), spec, budget, targets, importance)
        rest = layout.rest(table)
        found.append(choose(layout, rest, measure.measured(spec, table), measure))
    return found


def judged_and_told(sequences: Sequence[Ids]) -> tuple[list[Ids], list[Ids]]:
    """Sequences on which types are judged, evenly drawn, and those that tell quantisers of inputs.

    At most half of them are judged; a single one is both.
    """
    from emo_export.budget.sensitivity import TOKENS

    if len(sequences) < 2:
        return list(sequences), list(sequences)
    share = min(0.5, TOKENS / sum(map(len, sequences)))
    judged: list[Ids] = []
    told: list[Ids] = []
    for ids in sequences:
        behind = sum(map(len, judged)) < share * sum(map(len, (*judged, *told, ids)))
        (judged if behind else told).append(ids)
    return judged, told


class Measure:
    """Measures variants of a source on text, in as many passes as their states need."""

    def __init__(
        self,
        source: Source,
        judged: Sequence[Ids],
        told: Sequence[Ids],
        text: str,
        steps: Steps,
        device: str,
    ) -> None:
        self._source, self._told, self._steps, self._device = source, told, steps, device
        self.judged, self.text = judged, text
        self.tokens = sum(map(len, judged))

    def kls(self, spec: Spec, variants: Sequence[dict[Place, Format]]) -> list[float]:
        """Mean KL of each variant, 0 where rounding leaves it below."""
        from emo_export.budget.sensitivity import Sensitivity, variants_at_once
        from emo_export.reference.calibrate import Calibration

        config, found = self._source.config, []
        at_once = variants_at_once(config, self.tokens)
        for first in range(0, len(variants), at_once):
            some = variants[first : first + at_once]
            self._steps.on_stage(
                f"{spec}: what {len(some)} variant{'s' * (len(some) > 1)} cost on "
                f"{self.tokens} tokens"
            )
            calibration = Calibration(config, self._told, self.text, self._device)
            listener = Sensitivity(config, self.judged, some, calibration, device=self._device)
            self._steps.on_start((), self._source.nbytes)
            line = Line(Product.whole(self._source), listeners=[listener])
            stream([line], self._steps.on_bytes)
            found += [max(0.0, kl) for kl in listener.kls]
        return found

    def measured(self, spec: Spec, table: Sequence[Sequence[Chosen]]) -> list[list[Chosen]]:
        """A table with the KL of each type alone."""
        candidates = FAMILIES[spec.family].candidates(spec)
        kls = iter(self.kls(spec, [_formats([one], candidates) for row in table for one in row]))
        return [[replace(one, kl=next(kls)) for one in row] for row in table]

    def whole(self, spec: Spec, chosen: Iterable[Chosen]) -> float:
        """The KL of all of them at once."""
        return self.kls(spec, [_formats(chosen, FAMILIES[spec.family].candidates(spec))])[0]


def _formats(chosen: Iterable[Chosen], candidates: Candidates) -> dict[Place, Format]:
    return {place: candidates.known[one.type] for one in chosen for place in one.site.places()}


def table_of(config: EmoConfig, candidates: Candidates) -> list[list[Chosen]]:
    """Of each site of a model every type that it may have, of KLs that are not known yet."""
    rows: list[list[Chosen]] = []
    for site in sites(config, candidates.together):
        matrices = slots_of(site, config)
        rows.append([])
        for name in candidates.fitting(matrices, config):
            taken = bytes_of(matrices, candidates.known[name], config)
            rows[-1].append(Chosen(site, name, taken.stored, taken.read, math.inf))
    return rows


@dataclass(frozen=True)
class Layout:
    """A target as its files would be, and what of the budget it takes."""

    product: Product
    spec: Spec
    budget: Budget
    targets: TargetOptions
    importance: ImportanceMatrix | None

    def recipe(self, chosen: Iterable[Chosen]) -> Recipe:
        """The types as a target takes them."""
        return recipe_of(chosen, self.product.config.num_hidden_layers)

    def planned(self, chosen: Iterable[Chosen]) -> Planned:
        """The files with such types."""
        taken = FAMILIES[self.spec.family].taken(self.spec, self.targets)
        options = replace(taken, tensor_types=(), chosen={self.spec: self.recipe(chosen)})
        return planned_with(self.spec, self.product, options, self.importance)

    def rest(self, table: Sequence[Sequence[Chosen]]) -> float:
        """What is taken beside the matrices. Raises EmoExportError where the least is too much."""
        least = [min(row, key=lambda one: _cost(one, self.budget)) for row in table]
        planned = self.planned(least)
        taken, limit = _taken(self.budget, planned), self.limit
        if taken > limit:
            raise EmoExportError(_too_small(self.spec, self.budget, limit, taken))
        return taken - sum(_cost(one, self.budget) for one in least)

    @property
    def limit(self) -> float:
        """The budget in bytes."""
        if self.budget.limit != Limit.BITS:
            return self.budget.amount
        config = self.product.config
        return self.budget.amount / 8 * sum(math.prod(shape_of(s, config)) for s in slots(config))


def choose(
    layout: Layout, rest: float, table: Sequence[Sequence[Chosen]], measure: Measure
) -> Found:
    """The best choice from a table, checked on the files as they will be, and measured."""
    budget, limit = layout.budget, layout.limit
    options = [[Option(_cost(one, budget), one.kl) for one in row] for row in table]
    for _ in range(TRIES):
        picks = allocate(options, limit - rest)
        if picks is None:
            break
        chosen = [row[pick] for row, pick in zip(table, picks, strict=True)]
        used = _taken(budget, layout.planned(chosen))
        if used <= limit:
            return Found(
                layout.spec,
                budget,
                used * budget.amount / limit,
                layout.recipe(chosen),
                tuple(chosen),
                measure.whole(layout.spec, chosen),
                sum(one.kl for one in chosen),
                measure.tokens,
                measure.text,
            )
        rest += used - limit
    raise EmoExportError(
        f"{layout.spec}: no types were found whose files keep the budget, though the smallest do; "
        "give a little more"
    )


def _cost(one: Chosen, budget: Budget) -> float:
    return one.read if budget.limit == Limit.READ else one.stored


def _taken(budget: Budget, planned: Planned) -> float:
    """Bytes of what is limited."""
    found = {
        Limit.BITS: planned.need.weights,
        Limit.SIZE: planned.nbytes,
        Limit.READ: planned.read.weights,
        Limit.FIT: planned.running.total,
    }
    return found[budget.limit]


def _too_small(spec: Spec, budget: Budget, limit: float, smallest: float) -> str:
    option = f"--{budget.limit.value.replace('_', '-')}"
    if budget.limit == Limit.BITS:
        least = smallest / limit * budget.amount
        return f"{option} {budget.amount:g}: {spec} takes at least {least:.2f} bits a weight"
    given = budget.profile or shown(budget.amount)
    fewer = "" if budget.limit == Limit.READ else "; leave experts out (emo-export prune)"
    return f"{option} {given}: {spec} takes at least {shown(smallest)} of {shown(limit)}{fewer}"
