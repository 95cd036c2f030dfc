"""What `--ram` and `--context` mean for the targets of a package on a device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emo_export.errors import EmoExportError
from emo_export.files.memory_need import Need
from emo_export.files.target_entry import TargetEntry
from emo_export.parity.result import Crash, TooLittle
from emo_export.runtimes.devices.memory.fit import Fit, too_little
from emo_export.runtimes.devices.memory.trial import TOKENS, CrashError, try_memory
from emo_export.runtimes.devices.options import DeviceOptions
from emo_export.runtimes.devices.profiles import PROFILES
from emo_export.runtimes.devices.watched import WatchedDevice
from emo_export.runtimes.families import LIGHT
from emo_export.spec import Spec

EMULATED_TOKENS = 32  # of the prompt; a longer one would take minutes


@dataclass(frozen=True)
class MemoryVerdict:
    """What a run as a user runs it took, in bytes, and why the target is not to be judged, if so.

    `too_little`: the limit does not hold it; `crash`: a signal ended the run; `error`: nothing can
    be told, as with a context that the model does not have.
    """

    facts: Mapping[str, Any]
    too_little: TooLittle | None = None
    crash: Crash | None = None
    error: EmoExportError | None = None


def try_targets(
    device: WatchedDevice,
    folder: Path,
    targets: Mapping[str, TargetEntry],
    options: DeviceOptions,
) -> dict[Spec, MemoryVerdict]:
    """Run each target in the memory that was asked for, with its KV cache.

    With a context and no limit, the most that the device is sold with is the limit, and what is
    told is which sizes hold it. A target that can't be tried keeps no other from it.
    """
    limit = options.ram or max(PROFILES[device.name].memory)
    paths = {entry.spec: folder / entry.path for entry in targets.values()}
    needs: dict[Spec, Need] = {}
    fits, verdicts = [], {}
    for spec, path in paths.items():
        try:
            needs[spec] = LIGHT[spec.family].need(path, options.context or None, options.kv_cache)
            fit, found = try_memory(
                spec,
                path.resolve(),
                needs[spec],
                limit,
                device.command_line,
                device.environment,
                emulated=device.emulated,
                tokens=EMULATED_TOKENS if device.emulated else TOKENS,
                timeout=options.timeout,
            )
        except CrashError as error:
            verdicts[spec] = MemoryVerdict({}, crash=error.crash)
        except EmoExportError as error:
            verdicts[spec] = MemoryVerdict({}, error=error)
        else:
            fits.append(fit)
            measured = {} if found is None else found.as_dict()
            facts = {**measured, "needs": fit.as_dict(), **_sizes(device.name, fit)}
            verdicts[spec] = MemoryVerdict(facts)
    why = too_little(fits, paths, needs)
    return verdicts | {
        spec: MemoryVerdict(verdicts[spec].facts, told) for spec, told in why.items()
    }


def _sizes(device: str, fit: Fit) -> dict[str, list[str]]:
    """Which of the sizes that a profile is sold with hold it, once it has been measured."""
    if device not in PROFILES or not fit.measured:
        return {}
    sizes = PROFILES[device].memory
    return {
        "held_by": [f"{size >> 30} GiB" for size in sizes if fit.total <= size],
        "too_small": [f"{size >> 30} GiB" for size in sizes if fit.total > size],
    }
