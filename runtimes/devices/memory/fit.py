"""Whether a device with so much memory holds a target, and which other format it would hold.

Held means all at once: what is anonymous, the libraries, and every weight that the engine reads
from its mapped file. A model of which a part has to be read from the disk again for each token does
run, many times slower; who gives a size of memory asks for something else, so it fails.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from emo_export.errors import EmoExportError
from emo_export.files.memory_need import Need
from emo_export.parity.result import Smaller, TooLittle
from emo_export.runtimes.devices.memory.cap import MemoryFound
from emo_export.runtimes.families import LIGHT
from emo_export.spec import Spec


@dataclass(frozen=True)
class Fit:
    """What a target takes in `ram` bytes with a KV cache of `context` positions.

    `total` is `anonymous` (with the cache in it), `weights_mapped` and `libraries` (other files).
    Those but `cache` and `weights_mapped`, which come from headers, are measured: `measured` is
    False where the target wasn't run to its end, and `total` then what is known of it. `least` is
    its weights and cache, by the headers. `base` is what Python and the engine took before the
    model was opened.
    """

    target: Spec
    ram: int
    context: int
    total: int
    least: int
    anonymous: int
    cache: int
    weights_mapped: int
    libraries: int
    base: int | None
    measured: bool
    enforced: bool
    oom_killed: bool = False

    @property
    def holds(self) -> bool:
        """Whether it fits, as far as is known."""
        return self.total <= self.ram and not self.oom_killed

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "target": str(self.target), "holds": self.holds}


def least_fit(target: Spec, need: Need, ram: int) -> Fit:
    """By the headers alone, before anything is run: weights and cache, and nothing else."""
    mapped = need.weights if need.stays_mapped else 0
    return Fit(
        target=target,
        ram=ram,
        context=need.context,
        total=need.least,
        least=need.least,
        anonymous=need.least - mapped,
        cache=need.cache,
        weights_mapped=mapped,
        libraries=0,
        base=None,
        measured=False,
        enforced=False,
    )


def measured_fit(
    target: Spec, need: Need, ram: int, found: MemoryFound, cache_of_run: int, repacked: int = 0
) -> Fit:
    """From a run: what was measured, with the KV cache of the context in place of the run's.

    `repacked`: bytes of weights that llama.cpp copied (LlamaCpp.repacked); they are anonymous, and
    their pages of the file are not read again. A run that ended early says the least alone. Raises
    EmoExportError for one that ended before anything was seen of it.
    """
    base = None if found.base is None else found.base.anonymous + found.base.file
    peak = found.at_peak
    if peak is None:
        raise EmoExportError(f"{target}: its run ended before its memory could be looked at")
    if not found.finished:
        least = (base or 0) + need.least
        return Fit(
            target=target,
            ram=ram,
            context=need.context,
            total=max(least, ram + 1) if found.oom_killed else least,
            least=need.least,
            anonymous=found.peak_anonymous,
            cache=need.cache,
            weights_mapped=need.weights if need.stays_mapped else 0,
            libraries=0,
            base=base,
            measured=False,
            enforced=found.enforced,
            oom_killed=found.oom_killed,
        )
    anonymous = found.peak_anonymous - cache_of_run + need.cache
    mapped = max(0, need.weights - repacked) if need.stays_mapped else peak.model
    libraries = peak.file - peak.model
    return Fit(
        target=target,
        ram=ram,
        context=need.context,
        total=anonymous + mapped + libraries,
        least=need.least,
        anonymous=anonymous,
        cache=need.cache,
        weights_mapped=mapped,
        libraries=libraries,
        base=base,
        measured=True,
        enforced=found.enforced,
    )


def too_little(
    fits: Sequence[Fit], paths: Mapping[Spec, Path], needs: Mapping[Spec, Need]
) -> dict[Spec, TooLittle]:
    """The targets that the memory does not hold, and which smaller format it does hold.

    `fits` are of all targets of one package; `paths` and `needs` are by target too.
    """
    return {
        fit.target: _too_little(fit, fits, paths[fit.target], needs)
        for fit in fits
        if not fit.holds
    }


def _too_little(fit: Fit, fits: Sequence[Fit], path: Path, needs: Mapping[Spec, Need]) -> TooLittle:
    """With the largest smaller format that fits: of this package, or else to be exported."""
    family = fit.target.family
    there = {other.target: other.total for other in fits if other.holds and other.measured}
    if fit.oom_killed and fit.base is None and not there:
        return TooLittle(family, early=True)
    beside, known = _beside_weights(fit, fits, needs)
    run = {other.target for other in fits}
    for spec, need in needs.items():
        total = beside + need.weights
        if spec not in run and spec.family == family and total <= fit.ram:
            there[spec] = total
    here = {spec: total for spec, total in there.items() if total < fit.total}
    weights = needs[fit.target].weights
    others = here or {
        spec: beside + nbytes
        for spec, nbytes in LIGHT[family].other_sizes(path, fit.target).items()
        if nbytes < weights and beside + nbytes <= fit.ram and spec not in needs
    }
    if not others:
        return TooLittle(family)
    best = max(others, key=lambda spec: others[spec])
    weighed = LIGHT[best.family].weighs(best)
    smaller = Smaller(str(best), others[best], best in run, bool(here), known, weighed)
    return TooLittle(family, smaller)


def _beside_weights(fit: Fit, fits: Sequence[Fit], needs: Mapping[Spec, Need]) -> tuple[int, bool]:
    """Bytes that a format of this engine takes beside its weights, and whether they are measured.

    Where this target was not run to its end, those of another one of the engine; else what is
    known of it, its cache and what was there before it was opened.
    """
    for other in (fit, *fits):
        if other.measured and other.target.family == fit.target.family:
            return other.total - needs[other.target].weights, True
    return fit.cache + (fit.base or 0), False
