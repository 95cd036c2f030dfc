"""The devices that a plan knows: memory and bandwidth as data, each figure with its source."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources

from emo_export.base.near import did_you_mean
from emo_export.errors import EmoExportError


@dataclass(frozen=True)
class DeviceProfile:
    """A kind of device with one size of memory.

    `ram`: bytes as sold. `usable`: what the system leaves for a model. `bandwidth`: the lowest and
    the highest figure in bytes per second. `sources` says where each of the three is from.
    """

    name: str
    title: str
    ram: int
    usable: int
    bandwidth: tuple[float, float]
    sources: Mapping[str, str]


@cache
def device_profiles() -> Mapping[str, DeviceProfile]:
    """Every profile of profiles.json, by name."""
    text = (resources.files(__package__) / "profiles.json").read_text("utf-8")
    found = {}
    for name, raw in json.loads(text).items():
        low, high = raw["bandwidth"]["bytes_per_s"]
        found[name] = DeviceProfile(
            name,
            raw["title"],
            raw["ram"]["bytes"],
            raw["usable"]["bytes"],
            (low, high),
            {key: raw[key]["source"] for key in ("ram", "usable", "bandwidth")},
        )
    return found


def device_profile(name: str) -> DeviceProfile:
    """The profile of this name. Raises EmoExportError, which lists them all."""
    known = device_profiles()
    if name not in known:
        names = ", ".join(known)
        raise EmoExportError(
            f"--fit {name}: there is no such profile; there are {names}{did_you_mean(name, known)}"
        )
    return known[name]
