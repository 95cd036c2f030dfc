"""What a device installs for each kind of target: the ranges of pyproject.toml, as data.

They stand here too because the light runtime travels without its metadata; a test compares them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType

BASE = ("numpy>=2.0,<3",)

ENGINES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "gguf": ("xllamacpp>=2026.10,<2027",),
        "onnx": ("onnxruntime>=1.31.1,<1.32",),
    }
)
"""Kind of target -> the requirements of its extra (`llama`, `ort`)."""

ENGINE_OF: Mapping[str, str] = MappingProxyType({"llama": "gguf", "ort": "onnx"})
"""Extra -> kind of target."""


def requirements_for(kinds: Iterable[str]) -> tuple[str, ...]:
    """What pip is asked for, sorted. Kinds are `gguf` and `onnx`."""
    return tuple(sorted({*BASE, *(line for kind in kinds for line in ENGINES[kind])}))


def module_of(requirement: str) -> str:
    """`numpy>=2.0,<3` -> `numpy`, which is what all of them are imported as."""
    return requirement.partition(">")[0]
