"""The whole plan: every target at every count of experts, and what one export of each count takes.

As data, with a form for JSON; the sentences are made in cli/plan.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from emo_export.errors import EmoExportError
from emo_export.model.checkpoint import Checkpoint
from emo_export.planning.choice import Choice, choose
from emo_export.planning.export_need import ExportNeed, export_need
from emo_export.planning.export_time import ExportTime, Speeds, export_time, measure
from emo_export.planning.keeping import keeping, kept_counts
from emo_export.planning.outline import Impossible, Planned, outlined
from emo_export.planning.profiles import DeviceProfile, device_profiles
from emo_export.spec import Spec

TARGETS = ("gguf:q8_0", "gguf:q6_k", "gguf:q4_k_m", "gguf:q3_k_m", "onnx:int8", "onnx:int4")
"""What is planned unless asked otherwise: what the README recommends, from large to small."""


@dataclass(frozen=True)
class Kept:
    """One count of experts: its targets in the order asked for, and an export to all of them.

    `time`: None where nothing was measured.
    """

    experts: int
    targets: tuple[Planned | Impossible, ...]
    export: ExportNeed
    time: ExportTime | None = None

    @property
    def planned(self) -> list[Planned]:
        """Those that can be made."""
        return [each for each in self.targets if isinstance(each, Planned)]


@dataclass(frozen=True)
class Plan:
    """`experts`: those of the source's largest layer. `context`: positions of the KV cache.

    `speeds` of this machine, None where not measured.
    """

    experts: int
    context: int
    source_bytes: int | None
    kept: tuple[Kept, ...]
    speeds: Speeds | None = None

    @property
    def planned(self) -> list[Planned]:
        """Every target of every count that can be made."""
        return [each for kept in self.kept for each in kept.planned]

    def fit(self, profile: DeviceProfile) -> Choice:
        """What a device holds. Raises EmoExportError where no target can be made at all."""
        if not self.planned:
            raise EmoExportError(
                f"none of the targets can be made: {self.kept[0].targets[0].reason}"
                if isinstance(self.kept[0].targets[0], Impossible)
                else "no target was asked for"
            )
        return choose(self.planned, profile.usable)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "experts": self.experts,
            "context": self.context,
            "source_bytes": self.source_bytes,
            "speeds": None if self.speeds is None else asdict(self.speeds),
            "kept": [self._kept(kept) for kept in self.kept],
            "profiles": {name: asdict(found) for name, found in device_profiles().items()},
        }

    def _kept(self, kept: Kept) -> dict[str, Any]:
        export = asdict(kept.export)
        if kept.time is not None:
            export["seconds"] = {**asdict(kept.time), "total": kept.time.total}
        targets = [target_facts(each) for each in kept.targets]
        return {"experts": kept.experts, "targets": targets, "export": export}


def target_facts(target: Planned | Impossible) -> dict[str, Any]:
    """One target for JSON."""
    facts: dict[str, Any] = {"target": str(target.spec), "experts": target.experts}
    if isinstance(target, Impossible):
        return facts | {"impossible": target.reason}
    context = target.need.context
    return facts | {
        "bytes": target.nbytes,
        "needs_calibration": target.calibrated,
        "kv_cache": target.need.kv_cache,
        "memory": target.running.as_dict(),
        "read_per_token": {
            "weights": round(target.read.weights),
            "cache_at_context": target.read.cache * context,
        },
        "devices": {
            name: _on_device(target, profile) for name, profile in device_profiles().items()
        },
    }


def _on_device(target: Planned, profile: DeviceProfile) -> Mapping[str, Any]:
    spare = profile.usable - target.running.total
    at = {"first": 1, "at_context": target.need.context}
    ceilings = {
        f"ceiling_{when}": [round(target.ceiling(b, n), 2) for b in profile.bandwidth]
        for when, n in at.items()
    }
    return {"holds": spare >= 0, "short_by": max(0, -spare), **ceilings}


def make_plan(
    source: Checkpoint,
    source_bytes: int | None,
    specs: Sequence[str],
    keeps: Sequence[str],
    context: int | None,
    timed: bool = False,
    kv_cache: str | None = None,
) -> Plan:
    """Plan every target at every count (default: KEEPS), most experts first, equal counts once.

    `kv_cache`: the type of the KV cache, of targets whose engine takes it.

    Raises EmoExportError for a target, a count or a context that makes no sense; a target that the
    model can't have is part of the plan, with the reason. `timed`: measure for some seconds.
    """
    asked = list(dict.fromkeys(Spec.parse(spec) for spec in specs))
    positions = source.config.context_length(context)
    found = []
    for counts in kept_counts(keeps, source.config):
        product, most = keeping(source, counts), max(counts)
        targets = tuple(outlined(spec, product, most, positions, kv_cache) for spec in asked)
        planned = [each for each in targets if isinstance(each, Planned)]
        found.append((product, Kept(most, targets, export_need(product, planned, source_bytes))))
    most, speeds = max(layer.num_experts for layer in source.config.layers), None
    if timed:
        every = [each for _, kept in found for each in kept.planned]
        speeds = measure(source.files, source.config, every)
        found = [
            (product, replace(kept, time=export_time(product, kept.export, kept.planned, speeds)))
            for product, kept in found
        ]
    return Plan(most, positions, source_bytes, tuple(kept for _, kept in found), speeds)
