"""One target of a product as its files would be: bytes, weights, KV cache, bytes for a token."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

from emo_export.base.disk import size_of
from emo_export.base.scratch import Scratch
from emo_export.errors import EmoExportError
from emo_export.families import target_maker
from emo_export.families.options import TargetOptions
from emo_export.files.memory_need import Need
from emo_export.files.read_per_token import PerToken
from emo_export.files.run_memory import Running
from emo_export.interfaces import Format
from emo_export.model.importance import ImportanceMatrix
from emo_export.model.names import shape_of, slots
from emo_export.model.product import Product
from emo_export.runtimes.families import LIGHT
from emo_export.spec import Spec

PLAIN = TargetOptions()


@dataclass(frozen=True)
class Planned:
    """A target with `experts` kept in each layer.

    `nbytes`: of its file, or of all files of its folder, to the byte as export writes them without
    an importance matrix (with one, GGUF headers name it). `need`: weights and KV cache. `read`: of
    one decode step. `running`: memory on a device. `formats` by name, and how many `weights` each
    holds. `calibrated`: it can't be made without --calibration or --imatrix.
    """

    spec: Spec
    experts: int
    nbytes: int
    need: Need
    read: PerToken
    running: Running
    formats: Mapping[str, Format]
    weights: Mapping[str, int]
    calibrated: bool = False

    def ceiling(self, bandwidth: float, positions: int) -> float:
        """Tokens per second at most, with so many positions in the cache."""
        return bandwidth / self.read.at(positions)


@dataclass(frozen=True)
class Impossible:
    """A target that can't be made of the product, and why."""

    spec: Spec
    experts: int
    reason: str


def planned_with(
    spec: Spec,
    product: Product,
    options: TargetOptions,
    importance: ImportanceMatrix | None,
) -> Planned:
    """A target as an export with these options and this importance matrix writes it, to the byte.

    Raises EmoExportError for what the model can't have.
    """
    experts = max(layer.num_experts for layer in product.config.layers)
    return _planned(spec, product, experts, options.context, None, importance, options)


def outlined(
    spec: Spec, product: Product, experts: int, context: int | None, kv_cache: str | None
) -> Planned | Impossible:
    """Lay the target out, read what the layout says and remove it.

    `context`: positions of the KV cache, default the model's own. `kv_cache`: its type where the
    engine takes it.
    """
    try:
        return _planned(spec, product, experts, context, kv_cache, None)
    except EmoExportError as error:
        if LIGHT[spec.family].weighs(spec):
            with suppress(EmoExportError):
                return _planned(spec, product, experts, context, kv_cache, ImportanceMatrix("", 0))
        return Impossible(spec, experts, str(error))


def _planned(
    spec: Spec,
    product: Product,
    experts: int,
    context: int | None,
    kv_cache: str | None,
    importance: ImportanceMatrix | None,
    options: TargetOptions = PLAIN,
) -> Planned:
    make = target_maker([spec], product, options, importance)
    with Scratch("plan") as folder:
        target = make(folder)[0]
        target.writer.outline()
        formats: dict[str, Format] = {}
        weights: Counter[str] = Counter()
        for slot in slots(product.config):
            kind = target.writer.format_of(slot)
            formats[kind.name] = kind
            weights[kind.name] += math.prod(shape_of(slot, product.config))
        path, family = folder / target.entry.path, LIGHT[spec.family]
        cache = kv_cache if kv_cache in family.kv_caches else None
        need = family.need(path, context, cache)
        return Planned(
            spec,
            experts,
            size_of(path),
            need,
            family.per_token(path, cache),
            family.running(path, need, product.config),
            formats,
            weights,
            importance is not None,
        )
