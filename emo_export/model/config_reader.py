"""Typed access to the keys of a parsed config.json; every error names the file and the key."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NoReturn, TypeGuard

from emo_export.errors import EmoExportError
from emo_export.model.config_keys import IGNORED_KEYS, NEUTRAL_ONLY, OPTIONAL_KEYS, REQUIRED_KEYS

# Far above any model; a larger count in a damaged file would fill the memory before any check.
MAX_LAYERS = 4096
MAX_EXPERTS = 65536
MAX_NUMBER = 1 << 31


class ConfigReader:
    """Typed access to a parsed config.json; every error names the file and the key."""

    def __init__(self, raw: Mapping[str, Any], where: str) -> None:
        self.raw = raw
        self.where = where

    def refuse(self, what: str) -> NoReturn:
        """Raise EmoExportError with the file in front."""
        raise EmoExportError(f"{self.where}: {what}")

    def check_keys(self) -> None:
        """Refuse a missing, unknown or unsupported key."""
        raw = self.raw
        missing = [key for key in REQUIRED_KEYS if raw.get(key) is None]
        if missing:
            self.refuse(f"required key {', '.join(missing)} is missing; it has no safe default")
        if raw["model_type"] != "emo":
            self.refuse(f"model_type is {raw['model_type']!r}; this tool exports 'emo'")
        if raw.get("hidden_act", "silu") != "silu":
            self.refuse(f"hidden_act {raw['hidden_act']!r} is not supported, only 'silu'")
        known = IGNORED_KEYS | OPTIONAL_KEYS | set(REQUIRED_KEYS) | set(NEUTRAL_ONLY)
        unknown = sorted(set(raw) - known)
        if unknown:
            self.refuse(
                f"unknown config key {', '.join(unknown)}: it might change what the model computes;"
                " remove it if it does not, or ask for support"
            )
        for key, neutral in NEUTRAL_ONLY.items():
            if key in raw and raw[key] not in neutral:
                self.refuse(f"{key} = {raw[key]!r} is not supported (only {neutral[0]!r})")

    def integer(
        self, key: str, low: int, default: int | None = None, high: int | None = None
    ) -> int:
        """An integer within limits; the default where the key is absent or null."""
        value = self.raw.get(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, int) or isinstance(value, bool) or value < low:
            self.refuse(f"{key} is {value!r}, expected an integer of at least {low}")
        high = MAX_NUMBER if high is None else high
        if value > high:
            self.refuse(f"{key} is {value!r:.60}, more than the {high} that this tool reads")
        return value

    def optional_integer(self, key: str) -> int | None:
        """An integer of at least 0, or None."""
        return None if self.raw.get(key) is None else self.integer(key, 0)

    def positive(self, key: str) -> float:
        """A positive finite number."""
        value = self.raw.get(key)
        if not is_positive(value):
            self.refuse(f"{key} is {value!r}, expected a positive number")
        return float(value)

    def boolean(self, key: str) -> bool:
        """True or false; absent and null are false."""
        value = self.raw.get(key)
        if value is not None and not isinstance(value, bool):
            self.refuse(f"{key} is {value!r}, expected true or false")
        return bool(value)

    def token_ids(self, key: str) -> tuple[int, ...]:
        """A token id or a list of them, as a tuple."""
        value = self.raw.get(key)
        ids = [] if value is None else value if isinstance(value, list) else [value]
        if not all(_is_count(i) for i in ids):
            self.refuse(f"{key} is {value!r}, expected a token id or a list of them")
        return tuple(ids)

    def int_list(self, key: str, length: int) -> list[int] | None:
        """One count for each layer, or None."""
        value = self.raw.get(key)
        if value is None:
            return None
        if (
            not isinstance(value, list)
            or len(value) != length
            or not all(_is_count(v) and v <= MAX_EXPERTS for v in value)
        ):
            self.refuse(f"{key} is {value!r}, expected {length} integers, one for each layer")
        return list(value)

    def expert_ids(self, key: str, value: Any) -> tuple[int, ...]:
        """Distinct integers that name experts."""
        if value is None:
            return ()
        if not isinstance(value, list) or not all(_is_count(e) for e in value):
            self.refuse(f"{key} holds {value!r}, expected a list of expert ids")
        return tuple(value)


def is_positive(value: object) -> TypeGuard[float]:
    """A finite number above zero that fits a float (JSON also has Infinity and long integers)."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value) and value > 0
    except OverflowError:
        return False


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def read_rope(reader: ConfigReader) -> tuple[float, Mapping[str, Any] | None]:
    """rope_theta and rope_scaling, also from the `rope_parameters` that transformers 5 writes."""
    raw = reader.raw
    theta, scaling = raw.get("rope_theta"), raw.get("rope_scaling")
    parameters = raw.get("rope_parameters")
    if parameters is not None:
        if not isinstance(parameters, dict):
            reader.refuse(f"rope_parameters is {parameters!r}, expected an object")
        rest = {key: value for key, value in parameters.items() if key != "rope_theta"}
        inner = parameters.get("rope_theta", theta)
        if theta is not None and inner != theta:
            reader.refuse(f"rope_theta is {theta} but rope_parameters says {inner}")
        if scaling is not None and scaling != rest:
            reader.refuse("rope_scaling and rope_parameters disagree")
        theta, scaling = inner, rest
    if theta is None:
        reader.refuse("required key rope_theta is missing; it has no safe default")
    if not is_positive(theta):
        reader.refuse(f"rope_theta is {theta!r}, expected a positive number")
    if scaling is not None and not isinstance(scaling, dict):
        reader.refuse(f"rope_scaling is {scaling!r}, expected an object")
    if scaling and scaling.get("rope_theta", theta) != theta:
        reader.refuse(f"rope_theta is {theta} but rope_scaling says {scaling['rope_theta']}")
    if scaling and scaling.get("rope_type", scaling.get("type", "default")) == "default":
        scaling = None
    return float(theta), scaling or None
