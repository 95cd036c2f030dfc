"""The devices that can be emulated, as data: their CPU, their memory, what they exercise.

`cpu` is qemu's name of the core. What a plan knows of devices is in `planning/profiles.json`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from emo_export.errors import EmoExportError

GIB = 1 << 30


@dataclass(frozen=True)
class Profile:
    """One kind of device.

    `memory`: the sizes that are sold, in bytes.
    """

    name: str
    title: str
    cpu: str
    exercises: str
    memory: tuple[int, ...]


def _sizes(*gibibytes: int) -> tuple[int, ...]:
    return tuple(size * GIB for size in gibibytes)


PROFILES: Mapping[str, Profile] = {
    profile.name: profile
    for profile in (
        Profile(
            "pi4",
            "Raspberry Pi 4",
            "cortex-a72",
            "NEON without dot product: int4 of ONNX Runtime computes in float32, 8-bit has no fast "
            "kernel, and wheels that need newer instructions crash.",
            _sizes(1, 2, 4, 8),
        ),
        Profile(
            "pi5",
            "Raspberry Pi 5",
            "cortex-a76",
            "Dot product of 8-bit numbers (sdot); llama.cpp repacks Q4_0 for it.",
            _sizes(2, 4, 8, 16),
        ),
        Profile(
            "phone",
            "phone of 2022 or newer",
            "cortex-a710",
            "8-bit matrix products (i8mm, smmla) and SVE2 with vectors of 128 bits.",
            _sizes(4, 6, 8, 12, 16),
        ),
        Profile(
            "server-arm",
            "arm64 server",
            "neoverse-v1",
            "SVE with vectors of 256 bits, i8mm and bf16.",
            _sizes(16, 32, 64, 128),
        ),
    )
}


def profile_named(name: str) -> Profile:
    """The profile of this name. Raises EmoExportError, which lists them all."""
    found = PROFILES.get(name)
    if found is None:
        raise EmoExportError(f"there is no device profile {name}; there are {', '.join(PROFILES)}")
    return found
