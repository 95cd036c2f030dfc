"""What the report's template asks of the reports: which rows, which series, which facts."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from emo_export.errors import EmoExportError
from emo_export.files.manifest import Manifest
from emo_export.interfaces import Ids
from emo_export.parity.golden import ORIGINAL, PAD, Golden, domain_order
from emo_export.parity.result import FAIL, NOT_ENOUGH, PASS, PREFILL, SHIPPED, Result, Row
from emo_export.report.html import charts
from emo_export.report.text import engines

CLASSES = {PASS: "pass", FAIL: "fail", NOT_ENOUGH: "unsure"}
SIGNS = {PASS: "✓", FAIL: "✗", NOT_ENOUGH: "?"}
MOST_SAMPLES = 120  # of memory over time; the highest of each interval is kept

Sample = tuple[float, float, float]
"""Seconds since the start, bytes of anonymous memory, bytes of file-backed memory."""


@dataclass(frozen=True)
class Numbered:
    """A result and its place among all, by which its figures are named."""

    index: int
    result: Result

    def row(self, against: str) -> tuple[int, Row] | None:
        """The comparison of a whole prompt as shipped, and its place in the report."""
        for index, row in enumerate(self.result.rows):
            if (row.against, row.arithmetic, row.mode) == (against, SHIPPED, PREFILL):
                return index, row
        return None

    @property
    def samples(self) -> list[Sample]:
        """Memory over time, thinned to MOST_SAMPLES."""
        return thinned(_samples(self.result))


@dataclass(frozen=True)
class Usage:
    """Expert usage of one domain: counts (layers, experts) among so many tokens."""

    domain: str
    tokens: int
    counts: Ids


def judged(some: Sequence[Numbered], against: str = ORIGINAL) -> list[Numbered]:
    """Those that have the comparison."""
    return [n for n in some if n.row(against)]


def series(some: Sequence[Numbered], against: str, key: str) -> dict[str, Sequence[float]]:
    """One list by position (T,) of each report, by the name of its target."""
    rows = {n.result.target: row[1] for n in some if (row := n.row(against))}
    return {target: asdict(row.positions)[key] for target, row in rows.items()}


def domain_changes(some: Sequence[Numbered]) -> dict[str, dict[str, float]]:
    """Domain -> target -> relative change of perplexity; empty where no domains were recorded."""
    found: dict[str, dict[str, float]] = {}
    for n in some:
        row = n.row(ORIGINAL)
        for figures in row[1].domains if row else ():
            change = figures.perplexity_ratio - 1
            found.setdefault(figures.domain, {})[n.result.target] = change
    return found


def kernel_facts(some: Sequence[Numbered]) -> dict[str, str]:
    """The CPU of a device as its processes saw it, and what each engine chose to run on it."""
    machine = shared_facts(some)
    found = {"CPU": [machine.get("emulation") or machine.get("CPU", "")]}
    found["CPU features"] = [machine.get("CPU features", "")]
    for engine, text in engines([n.result for n in some]):
        found.setdefault(engine, []).append(text)
    return {key: ". ".join(filter(None, texts)) for key, texts in found.items() if any(texts)}


def shared_facts(some: Sequence[Numbered]) -> dict[str, str]:
    """What the runs on a device say of their machine and none says otherwise."""
    facts: dict[str, str] = {}
    for n in some:
        facts |= n.result.machine
    told = [n.result.machine for n in some]
    return {k: v for k, v in facts.items() if all(machine.get(k, v) == v for machine in told)}


def own_facts(n: Numbered, shared: Mapping[str, str]) -> list[tuple[str, str]]:
    """What one run says of its engine, and of its machine beside what all say."""
    return [
        *n.result.engine.items(),
        *((k, v) for k, v in n.result.machine.items() if k not in shared),
    ]


def memory_chart(n: Numbered) -> charts.Areas | None:
    """Memory over time in MB, with the limit where one was set."""
    limit = (n.result.memory or {}).get("limit")
    scaled = [(time, first / 1e6, second / 1e6) for time, first, second in n.samples]
    return charts.areas(scaled, limit / 1e6 if isinstance(limit, int | float) else None)


def size_of_target(manifest: Manifest, target: str) -> int:
    """Bytes of a target's file or folder."""
    place = manifest.targets[target].path
    inside = [f for f in manifest.files if f.path == place or f.path.startswith(f"{place}/")]
    return sum(file.bytes for file in inside)


def parts(manifest: Manifest) -> list[str]:
    """The parts of the model that the recipes name."""
    named = [part for entry in manifest.targets.values() for part in entry.recipe or {}]
    return list(dict.fromkeys(named))


def expert_usage(golden: Golden) -> list[Usage]:
    """Each domain of golden.npz; empty when it recorded none."""
    found = []
    for domain, counts in zip(domain_order(golden.domains), golden.usage, strict=True):
        rows = [name == domain for name in golden.domains]
        found.append(Usage(domain, int((golden.heldout_ids[rows] != PAD).sum()), counts))
    return found


def exact_json(value: float | None) -> str:
    """A figure exactly as parity.json has it."""
    return json.dumps(value if value is not None and math.isfinite(value) else None)


def fact(value: object) -> str:
    """A fact of a machine or of its memory as text."""
    if isinstance(value, Mapping | list | tuple):
        return json.dumps(value, ensure_ascii=False)
    if value is None or isinstance(value, bool):
        return {None: "not known", True: "yes", False: "no"}[value]
    return f"{value:,}" if isinstance(value, int) else str(value)


def _samples(result: Result) -> list[Sample]:
    """Raises EmoExportError for samples of another form than seconds and two numbers of bytes."""
    raw = (result.memory or {}).get("samples") or []
    try:
        samples = [(float(time), float(first), float(second)) for time, first, second in raw]
    except (TypeError, ValueError) as error:
        raise EmoExportError(
            f"memory of {result.target} on {result.device}: samples are not [seconds, anonymous, "
            f"file] ({error})"
        ) from error
    return [sample for sample in samples if all(map(math.isfinite, sample))]


def thinned(samples: Sequence[Sample]) -> list[Sample]:
    """At most MOST_SAMPLES: of each stretch of samples the one with the most memory in all."""
    size = max(1, math.ceil(len(samples) / MOST_SAMPLES))
    return [
        max(samples[start : start + size], key=lambda sample: sample[1] + sample[2])
        for start in range(0, len(samples), size)
    ]
