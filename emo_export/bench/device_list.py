"""What of the emulated devices is set up, where, how large, and whether it is what was pinned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from emo_export.bench.doctor import Check
from emo_export.errors import EmoExportError
from emo_export.runtimes.devices.emulated.place import bytes_of, place
from emo_export.runtimes.devices.emulated.setup import READY, existing, ready_emulation
from emo_export.runtimes.devices.profiles import PROFILES

SETUP = "emo-export device setup"


@dataclass(frozen=True)
class Listing:
    """The cache folder, and each setup in it: its paths and versions.

    `ready` tells whether the pinned setup is there, `reason` why not.
    """

    folder: Path
    nbytes: int
    ready: bool
    reason: str
    setups: tuple[Mapping[str, Any], ...]

    def as_dict(self) -> dict[str, Any]:
        """All of it with the profiles, for JSON."""
        return {
            "folder": str(self.folder),
            "bytes": self.nbytes,
            "ready": self.ready,
            "reason": self.reason,
            "profiles": [asdict(profile) for profile in PROFILES.values()],
            "setups": list(self.setups),
        }


def listing() -> Listing:
    """Look, without fetching or running anything."""
    folder = place()
    found = [ready_emulation(path) for path in sorted(folder.glob(f"{READY}*.json"))]
    setups = tuple(
        {
            "root": str(one.root),
            "qemu": str(one.qemu),
            "site": str(one.site),
            "libllama": str(one.libllama),
            "versions": {name: str(version) for name, version in one.versions.items()},
            "pinned": all(version.pinned for version in one.versions.values()),
        }
        for one in found
        if one
    )
    ready, reason = state()
    return Listing(folder, bytes_of(folder), ready, reason, setups)


def device_check() -> Check:
    """What `doctor` says of the emulated devices."""
    ready, found = state()
    return Check("emulated devices", found, ready, "validate --device", "" if ready else SETUP)


def state() -> tuple[bool, str]:
    """Whether the pinned setup is there, and what to say of it."""
    try:
        found = existing()
    except EmoExportError as error:
        return False, str(error)
    if found is None:
        return False, "not set up"
    versions = found.versions
    names = ("qemu", "python", "onnxruntime", "llama.cpp")
    return True, ", ".join(f"{name} {versions[name].text}" for name in names)
